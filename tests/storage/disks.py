"""Disks that fail on purpose: they tear writes, refuse to sync, and forget what was not synced."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR

from control_plane.storage.journal.writer import Disk


class Crash(BaseException):
    """The process ends here."""


class FailingDisk:
    """A disk whose next write or sync fails in a given way. Give `disk` to `Journal.open`."""

    def __init__(self, fsync: Callable[[int], None] = os.fsync) -> None:
        self.room_bytes: int | None = None
        self.fsync_errno: int | None = None
        self.crash = False
        self._fsync = fsync
        self.disk = Disk(write=self._write, fsync=self._sync)

    def _write(self, descriptor: int, data: bytes) -> int:
        if self.room_bytes is None or len(data) <= self.room_bytes:
            return os.write(descriptor, data)
        if self.room_bytes:
            written = os.write(descriptor, data[: self.room_bytes])
            self.room_bytes = 0
            if not self.crash:
                return written
        if self.crash:
            raise Crash
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _sync(self, descriptor: int) -> None:
        if self.fsync_errno is not None:
            raise OSError(self.fsync_errno, os.strerror(self.fsync_errno))
        self._fsync(descriptor)


class ForgetfulDisk:
    """A disk that keeps, when the power fails, exactly what was synced: bytes by file, names by folder."""

    def __init__(self) -> None:
        self._synced_bytes: dict[str, int] = {}
        self._unsynced_names: set[str] = set()
        self.disk = Disk(create=self._create, fsync=self._sync)

    def _create(self, path: Path) -> int:
        descriptor = Disk().create(path)
        self._synced_bytes[str(path)] = 0
        self._unsynced_names.add(str(path))
        return descriptor

    def _sync(self, descriptor: int) -> None:
        path, status = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor)
        if S_ISDIR(status.st_mode):
            self._unsynced_names -= {name for name in self._unsynced_names if str(Path(name).parent) == path}
        else:
            self._synced_bytes[path] = status.st_size

    def lose_power(self) -> None:
        for name, size_bytes in self._synced_bytes.items():
            if name in self._unsynced_names:
                Path(name).unlink(missing_ok=True)
            elif Path(name).exists():
                os.truncate(name, size_bytes)
