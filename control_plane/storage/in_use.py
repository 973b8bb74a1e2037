"""Locks between reading another run's files, for a fork, a replay or an adoption, and deleting that run.

Not covered: file systems without `flock`; readers that are not ours.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.core.model.errors import Conflict
from control_plane.storage.layout import RunFiles


@contextmanager
def reading(files: RunFiles) -> Iterator[None]:
    """Keep a run from being deleted. Raises `Conflict` while it is being deleted."""
    with _locked(files, fcntl.LOCK_SH, "is being deleted"):
        yield


@contextmanager
def nobody_reads(files: RunFiles) -> Iterator[None]:
    """Keep others from beginning to read a run. Raises `Conflict` while one reads it."""
    with _locked(files, fcntl.LOCK_EX, "is being read by a fork, a replay or an adoption; try again when that is done"):
        yield


@contextmanager
def _locked(files: RunFiles, how: int, otherwise: str) -> Iterator[None]:
    try:
        descriptor = os.open(files.config, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield  # not a complete run: nothing of it can be forked
        return
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"run {files.run} {otherwise}") from None
        yield
    finally:
        os.close(descriptor)
