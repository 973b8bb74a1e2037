"""Start queue of runs: gang scheduling, so that two runs never hold half of the same resources each.

Every driver adds an entry, a file beside the runs' folders that it keeps locked. The driver with the oldest entry
waits until the cluster has enough free resources, starts its ranks, and removes its entry when they have begun. The
kernel unlocks the entry of a driver that dies, and the next driver to look removes it.
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
"""Timeout for a run to begin once it has its resources; after it, the next run may start."""

UNSEEN = "."
"""Prefix of an entry's name while it is not locked yet."""

Resources = dict[str, float]


@contextmanager
def queued_start(
    entries: Path,
    needed: Resources,
    free: Callable[[], Resources],
    total: Callable[[], Resources],
    has_begun: Callable[[], bool],
) -> Iterator[None]:
    """Wait in the queue until the cluster has the `needed` resources `free`, then run the context.

    Does not wait for more than the cluster has in `total`: then Ray reports what is missing, and nodes may still join.
    """
    try:
        entry = QueueEntry(entries)
    except OSError as error:
        log.warning("the start queue cannot be used (%s): this run starts at once", error)
        yield
        return
    _wait_until("its turn in the start queue: earlier runs are starting, or wait for resources", entry.is_oldest)
    _wait_until(
        f"free resources: its ranks need {needed}", lambda: not _lacks(needed, free()) or _lacks(needed, total())
    )
    threading.Thread(target=_leave_when_begun, args=(entry, has_begun), name="steerway-turn", daemon=True).start()
    yield


class QueueEntry:
    """One driver's place in the start queue."""

    def __init__(self, folder: Path) -> None:
        """Join the end of the queue. Raises `OSError` if files cannot be locked there."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._path = folder / f"{time.time_ns():020d}-{os.getpid()}"
        # Hidden until it is locked: another driver would take the driver of an unlocked one for dead.
        unseen = folder / f"{UNSEEN}{self._path.name}"
        self._descriptor = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unseen.rename(self._path)

    def is_oldest(self) -> bool:
        """Return whether no living driver came before."""
        entries = (path for path in sorted(self._path.parent.iterdir()) if not path.name.startswith(UNSEEN))
        return not any(_is_held(path) for path in entries if path.name < self._path.name)

    def leave(self) -> None:
        """Leave the queue."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _is_held(path: Path) -> bool:
    """Return whether the entry's driver is alive; remove the entry if it is not."""
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
    log.info("the run waits for %s", what)
    while not ready():
        time.sleep(LOOK_EVERY_S)


def _lacks(needed: Resources, there: Resources) -> bool:
    # Ray counts in ten-thousandths.
    return any(there.get(name, 0.0) + 1e-4 < amount for name, amount in needed.items())


def _leave_when_begun(entry: QueueEntry, has_begun: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BEGIN_WITHIN_S
    while time.monotonic() < deadline_s and not has_begun():
        time.sleep(LOOK_EVERY_S)
    entry.leave()
