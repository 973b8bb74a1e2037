"""Probe of a folder's file system on this machine: what runs need of it is tried out in a scratch folder.

Exclusive creation, atomic rename, fsync, locks (also one that another machine holds), and free space.
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane.api.cluster import Finding
from control_plane.core.model.errors import Refused
from control_plane.storage.private import FILE_MODE, FOLDER_MODE

PREFIX = ".probe-"
LOCKED = "locked"

SLOW_FSYNC_S = 0.2
"""Every accepted command waits for one; a disk takes milliseconds."""

LOW_BYTES, FULL_BYTES = 20 * 1024**3, 1024**3
OTHER_STORAGE = "store runs on a file system that has it: set STEERWAY_HOME to a folder there, on every node"


@contextmanager
def held_probe(home: Path) -> Iterator[Path]:
    """Make a scratch folder with a lock that this process holds, for `probe` on other machines. Raises `Refused`."""
    folder = home / f"{PREFIX}{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=FOLDER_MODE)
        handle = os.open(folder / LOCKED, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise Refused(f"{home} cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def probe(folder: Path) -> list[Finding]:
    """Try out what runs need, in a scratch folder of `held_probe`, which another process holds. One finding a check."""
    checks: list[tuple[str, Callable[[Path], tuple[str, str, str]]]] = [
        ("exclusive creation", _exclusive_creation),
        ("atomic rename", _rename),
        ("fsync", _fsync),
        ("locks between processes", _lock),
        ("free space", _space),
    ]
    return [_try(what, check, folder) for what, check in checks]


def _try(what: str, check: Callable[[Path], tuple[str, str, str]], folder: Path) -> Finding:
    try:
        level, why, action = check(folder)
    except OSError as error:
        where = folder.parent
        return Finding(level="failed", what=what, why=f"{where}: {error.strerror or error}", action=OTHER_STORAGE)
    return Finding.model_validate({"level": level, "what": what, "why": why, "action": action})


def _name(folder: Path) -> Path:
    return folder / secrets.token_hex(8)


def _write(path: Path, content: bytes, flags: int = 0) -> float:
    """Write a file durably and return the seconds of its fsync."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, FILE_MODE)
    try:
        os.write(handle, content)
        began_s = time.perf_counter()
        os.fsync(handle)
        return time.perf_counter() - began_s
    finally:
        os.close(handle)


def _exclusive_creation(folder: Path) -> tuple[str, str, str]:
    for path in (_name(folder), folder / LOCKED):
        if path.name != LOCKED:
            _write(path, b"", os.O_EXCL)
        try:
            _write(path, b"", os.O_EXCL)
        except FileExistsError:
            continue
        return (
            "failed",
            f"a file in {folder.parent} was created twice: two writers could own one journal",
            OTHER_STORAGE,
        )
    return "ok", "", ""


def _rename(folder: Path) -> tuple[str, str, str]:
    new, old = _name(folder), _name(folder)
    _write(old, b"old")
    _write(new, b"new")
    new.replace(old)
    if old.read_bytes() != b"new" or new.exists():
        return "failed", f"a rename in {folder.parent} did not replace the file", OTHER_STORAGE
    return "ok", "", ""


def _fsync(folder: Path) -> tuple[str, str, str]:
    took_s = sorted(_write(_name(folder), b"x" * 4096) for _ in range(3))[1]
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    if took_s > SLOW_FSYNC_S:
        return "warning", f"takes {1000 * took_s:.0f} ms: every command waits so long before it is accepted", ""
    return "ok", f"{1000 * took_s:.1f} ms", ""


def _lock(folder: Path) -> tuple[str, str, str]:
    handle = os.open(folder / LOCKED, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return "ok", "", ""
        raise
    finally:
        os.close(handle)
    why = f"a lock in {folder.parent} that another process holds was given a second time"
    return "failed", why, OTHER_STORAGE + "; for NFS, mount it without `nolock` and `local_lock`"


def _space(folder: Path) -> tuple[str, str, str]:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    why = f"{free / 1024**3:.1f} GiB in {folder.parent}"
    if free < FULL_BYTES:
        return "failed", why, "checkpoints will fail: remove old runs, or use a larger disk"
    return ("warning", why, "checkpoints may fill it: remove old runs") if free < LOW_BYTES else ("ok", why, "")
