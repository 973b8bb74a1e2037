"""A file of a run's folder, opened for somebody: a regular file of that name, or a refusal, and never a wait.

A script, or whoever a run's folder came from, may have put a named pipe, a link or a device there. Opening a pipe
waits until somebody writes into it, and the thread that waits is then missing to everybody else.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from control_plane.core.model.errors import Damaged


def open_regular(path: Path | str, folder: int | None = None, only_name: bool = False) -> BinaryIO:
    """Open for reading; `path` is taken from the open `folder` if there is one. A symbolic link is not followed.

    `only_name`: a file that has another name as well (a hard link to somebody's file) is refused, too. Raises
    `Damaged` for a link, a pipe, a socket or a device, and `OSError`, as for a folder.
    """
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        # What cannot even be opened that way: a link (ELOOP), a socket (ENXIO). Others are what they say.
        if _is_regular(path, folder):
            raise
        raise Damaged(f"{name} is not a regular file: put the file itself there, not a link or a pipe") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{name} is not a regular file: put the file itself there, not a link or a pipe")
        if only_name and status.st_nlink != 1:
            raise Damaged(f"{name} has another name elsewhere (a hard link), so whose file it is cannot be told")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All of it. Raises what `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def _is_regular(path: Path | str, folder: int | None) -> bool:
    try:
        return stat.S_ISREG(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return True
