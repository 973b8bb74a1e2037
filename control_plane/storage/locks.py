"""Locks between processes of one home, by `flock`: whoever dies lets go of them.

Not covered: file systems without `flock`.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane.core.model.errors import Unavailable
from control_plane.storage.private import make_folder, private


@contextmanager
def lock_file(path: Path, wait_s: float, look_every_s: float, otherwise: str) -> Iterator[None]:
    """Hold the lock of a file, which is made with its folder. Raises `Unavailable(otherwise)` after `wait_s`."""
    make_folder(path.parent)
    deadline = time.monotonic() + wait_s
    with open(path, "w", opener=private) as file:
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise Unavailable(otherwise)
            time.sleep(look_every_s)
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made, for as long as a file in it is changed. Waits for it."""
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
