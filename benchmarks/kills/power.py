"""Simulation of a power failure: a disk that logs each `fsync`, and the removal of data that was not synced.

SIGKILL alone loses nothing that was written. So each `fsync` is logged in a file beside the journal, and `lose_power`
removes the rest: bytes beyond the last sync of their file, and names whose folder was not synced.
"""

import os
import random
from pathlib import Path
from stat import S_ISDIR

from control_plane.storage.journal.writer import Disk


class NotedDisk:
    """Real disk that logs each sync. Pass `disk` to `Journal.open`."""

    def __init__(self, notes: Path) -> None:
        """Append to the log, or create it."""
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.disk = Disk(create=self._create, fsync=self._sync)

    def _create(self, path: Path) -> int:
        descriptor = Disk().create(path)
        self._note(f"created 0 {path}")
        return descriptor

    def _sync(self, descriptor: int) -> None:
        status, path = os.fstat(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")
        os.fsync(descriptor)
        self._note(f"folder 0 {path}" if S_ISDIR(status.st_mode) else f"file {status.st_size} {path}")

    def _note(self, line: str) -> None:
        os.write(self._notes, f"{line}\n".encode())


def lose_power(notes: Path, dice: random.Random) -> None:
    """Remove files and bytes that were not synced. No process may be using them."""
    certain, uncertain = dict[str, int](), set[str]()
    for line in notes.read_text().splitlines() if notes.exists() else ():
        what, size, path = line.split(" ", 2)
        if what == "folder":
            uncertain -= {name for name in uncertain if os.path.dirname(name) == path}
        else:
            certain[path] = int(size)
        if what == "created":
            uncertain.add(path)
    for path in uncertain & certain.keys():
        Path(path).unlink(missing_ok=True)
    for path in certain.keys() - uncertain:
        _forget_some(Path(path), certain[path], dice)


def _forget_some(path: Path, synced_bytes: int, dice: random.Random) -> None:
    # A part of the bytes may have reached the disk without a sync.
    if path.exists() and (size_bytes := path.stat().st_size) > synced_bytes:
        kept = dice.choice((synced_bytes, dice.randint(synced_bytes, size_bytes)))
        os.truncate(path, kept)
