"""Runs wait for their turn: one that the cluster has no room for yet does not begin to start its ranks.

Every driver takes a ticket, a file beside the runs' folders that it keeps locked. The one with the oldest ticket waits
for room, starts, and gives its ticket back when its ranks have begun, so that two runs never take half of the same room
each. The system unlocks the ticket of a driver that dies, and the next one to look removes it.
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

UNSEEN = "."
"""Before the name of a ticket that is not locked yet."""

Resources = dict[str, float]


@contextmanager
def turn(
    tickets: Path,
    needed: Resources,
    free: Callable[[], Resources],
    total: Callable[[], Resources],
    has_begun: Callable[[], bool],
) -> Iterator[None]:
    """Inside there is room for what is `needed`, as far as it was `free` a moment ago.

    What the cluster does not have in all (`total`) is not waited for: Ray says so, and nodes may still come.
    """
    try:
        ticket = Ticket(tickets)
    except OSError as error:
        log.warning("runs cannot take turns here (%s): this one starts at once", error)
        yield
        return
    _wait_until("its turn: runs that came before are starting, or wait for room", ticket.is_oldest)
    _wait_until(f"room: its ranks need {needed}", lambda: not _lacks(needed, free()) or _lacks(needed, total()))
    threading.Thread(target=_give_back, args=(ticket, has_begun), name="steerway-turn", daemon=True).start()
    yield


class Ticket:
    """One driver's place in the row."""

    def __init__(self, folder: Path) -> None:
        """Take the next one. Raises `OSError` where files cannot be locked."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._path = folder / f"{time.time_ns():020d}-{os.getpid()}"
        # Nobody sees it before it is locked: whoever saw it then would take its driver for dead.
        unseen = folder / f"{UNSEEN}{self._path.name}"
        self._descriptor = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unseen.rename(self._path)

    def is_oldest(self) -> bool:
        """Whether nobody who lives came before."""
        tickets = (path for path in sorted(self._path.parent.iterdir()) if not path.name.startswith(UNSEEN))
        return not any(_is_held(path) for path in tickets if path.name < self._path.name)

    def give_back(self) -> None:
        """The next one, please."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _is_held(path: Path) -> bool:
    """Whether the driver lives; the ticket of one that died is removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _wait_until(what: str, ready: Callable[[], bool]) -> None:
    if ready():
        return
    log.info("waits for %s", what)
    while not ready():
        time.sleep(LOOK_EVERY_S)


def _lacks(needed: Resources, there: Resources) -> bool:
    # Ray counts in ten-thousandths.
    return any(there.get(name, 0.0) + 1e-4 < amount for name, amount in needed.items())


def _give_back(ticket: Ticket, has_begun: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BEGIN_WITHIN_S
    while time.monotonic() < deadline_s and not has_begun():
        time.sleep(LOOK_EVERY_S)
    ticket.give_back()
