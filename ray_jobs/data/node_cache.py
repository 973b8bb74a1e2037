"""Derived facts of files, computed once on a node and kept: the first process computes, the others wait and read.

sha256 = once("hashes", (path, size, mtime), lambda: file_sha256(path))
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane.storage.private import make_folder
from ray_jobs.data.sample_order import cache_folder

log = logging.getLogger(__name__)


def key_of(*parts: object) -> str:
    """Return a name for a file of the cache: the SHA-256 over the parts, which must have a stable `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of one entry against the other processes of this node.

    A cache that cannot be written is no reason to fail: then nothing is locked, and each process computes for itself.
    """
    try:
        make_folder(folder)
        file = (folder / f"{key}.lock").open("a")
    except OSError as error:
        log.warning("the cache %s cannot be written: %s", folder, error)
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(kind: str, key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
    """Return a JSON value that was computed for this key on this node, or compute and keep it."""
    folder, name = cache_folder() / kind, key_of(*key)
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with locked(folder, name):
        try:
            return json.loads(path.read_text())["value"]
        except (OSError, ValueError, KeyError, TypeError):
            value = compute()
            keep(path, json.dumps({"value": value}).encode())
            return value


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache atomically. An error is only logged."""
    own = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        own.write_bytes(content)
        own.replace(path)
    except OSError as error:
        log.warning("%s could not be kept in the cache: %s", path.name, error)
