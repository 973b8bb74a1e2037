"""Runs wait for their turn: one that the cluster has no room for yet does not begin to start its ranks.

Drivers that wait share a lock beside the runs' folders. Who holds it waits for room, starts, and gives it back when
its ranks have begun, so that two runs never take half of the same room each. Whoever dies lets it go.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
BEGIN_WITHIN_S = 180.0
"""So long a run that had room may take to begin; then the next one may look for room."""

Resources = dict[str, float]


@contextmanager
def turn(
    lock: Path,
    needed: Resources,
    free: Callable[[], Resources],
    total: Callable[[], Resources],
    has_begun: Callable[[], bool],
) -> Iterator[None]:
    """Inside there is room for what is `needed`, as far as it was `free` a moment ago.

    What the cluster does not have in all (`total`) is not waited for: Ray says so, and nodes may still come.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _lock(descriptor)
    _wait_for_room(needed, free, total)
    threading.Thread(target=_give_back, args=(descriptor, has_begun), name="steerway-turn", daemon=True).start()
    yield


def _lock(descriptor: int) -> None:
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                log.info("another run is starting, or waits for room: this one comes after it")
            said = True
            time.sleep(LOOK_EVERY_S)
        except OSError as error:
            log.warning("runs cannot take turns here (%s): this one starts at once", error)
            return
        else:
            return


def _wait_for_room(needed: Resources, free: Callable[[], Resources], total: Callable[[], Resources]) -> None:
    said = False
    while _lacks(needed, free()) and not _lacks(needed, total()):
        if not said:
            log.info("waits for room: its ranks need %s, and %s is free", needed, free())
        said = True
        time.sleep(LOOK_EVERY_S)


def _lacks(needed: Resources, there: Resources) -> bool:
    # Ray counts in ten-thousandths.
    return any(there.get(name, 0.0) + 1e-4 < amount for name, amount in needed.items())


def _give_back(descriptor: int, has_begun: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BEGIN_WITHIN_S
    while time.monotonic() < deadline_s and not has_begun():
        time.sleep(LOOK_EVERY_S)
    os.close(descriptor)
