"""Safe opening of untrusted files: only regular files, never a link, pipe or device, and never blocking.

A script, or the origin of a run's folder, may have planted a named pipe, a link or a device there. Opening a pipe
blocks the thread until somebody writes into it.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from control_plane.core.model.errors import Damaged


def open_regular(path: Path | str, folder: int | None = None, only_name: bool = False) -> BinaryIO:
    """Open a regular file for reading, relative to the descriptor `folder` if given. Symbolic links are not followed.

    `only_name`: also reject a file with another name (a hard link to another user's file). Raises `Damaged` for a
    link, a pipe, a socket or a device, and `OSError`, also for a folder.
    """
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        # A link (ELOOP) or a socket (ENXIO) cannot be opened with these flags; other errors are genuine.
        if _is_regular(path, folder):
            raise
        raise Damaged(f"{name} is not a regular file: replace the link, pipe or device by the file itself") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{name} is not a regular file: replace the link, pipe or device by the file itself")
        if only_name and status.st_nlink != 1:
            raise Damaged(f"{name} has a hard link elsewhere, so it may be another user's file")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Read a whole regular file. Raises like `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _is_regular(path: Path | str, folder: int | None) -> bool:
    try:
        return stat.S_ISREG(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return True


def file_version(path: Path) -> tuple[int, ...] | None:
    """Return a fingerprint that changes with the file, which is always replaced as a whole; None if missing."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode, about.st_uid
