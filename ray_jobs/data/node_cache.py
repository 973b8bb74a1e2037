"""Derived facts of files, computed once on a node and kept: the first process computes, the others wait and read.

sha256 = once("hashes", (path, size, mtime), lambda: file_sha256(path))
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from control_plane.storage.private import make_folder
from ray_jobs.data.sample_order import cache_folder

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 30
"""All files of one kind together; beyond it the longest unused ones are removed when one is made."""

UNUSED_FOR_S = 14 * 24 * 3600.0
"""Age since its last use at which a file is removed."""

IN_USE_FOR_S = 3600.0
"""A file that was opened so lately is never removed: loaders may open it again."""


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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_file(kind: str, key: str, write: Callable[[BinaryIO], None]) -> Path:
    """Return the file of this key on this node, which is written if it is not here as it was written.

    Raises `OSError` if it cannot be kept, and what `write` raises.
    """
    folder = cache_folder() / kind
    if (path := _intact(folder, key)) is not None:
        return path
    with locked(folder, key):
        return _intact(folder, key) or _written(folder, key, write)


def _intact(folder: Path, key: str) -> Path | None:
    """Return a file if it is what its description says; it is hashed again whenever it was touched."""
    path, about = folder / f"{key}.arrow", folder / f"{key}.json"
    try:
        said, place = json.loads(about.read_text()), _place(path)
        if said["place"] != place:
            if place[0] != said["place"][0] or file_sha256(path) != said["sha256"]:
                raise ValueError("its bytes are not those that were written")
            keep(about, json.dumps(said | {"place": place}).encode())
        os.utime(about)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("the cached file %s is made again: %s", path.name, error)
        return None
    return path


def _written(folder: Path, key: str, write: Callable[[BinaryIO], None]) -> Path:
    path = folder / f"{key}.arrow"
    own = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        make_folder(folder)
        clean(folder)
        with own.open("wb") as file:
            write(file)
        own.replace(path)
        keep(path.with_suffix(".json"), json.dumps({"sha256": file_sha256(path), "place": _place(path)}).encode())
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)
    return path


def _place(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def clean(folder: Path, now_s: float | None = None) -> None:
    """Remove files that nobody has used for long, and the longest unused ones while all are too large together."""
    now_s = time.time() if now_s is None else now_s
    kept = list[tuple[float, int, Path]]()
    for path in folder.iterdir():
        with suppress(OSError):
            if path.suffix == ".arrow":
                about = path.with_suffix(".json")
                used_s = about.stat().st_mtime if about.exists() else path.stat().st_mtime
                kept.append((used_s, path.stat().st_size, path))
            elif now_s - path.stat().st_mtime > UNUSED_FOR_S and path.suffix in (".tmp", ".lock"):
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for used_s, size, path in sorted(kept):
        if now_s - used_s > UNUSED_FOR_S or (total > MAX_BYTES and now_s - used_s > IN_USE_FOR_S):
            for one in (path.with_suffix(".json"), path):
                with suppress(OSError):
                    one.unlink()
            total -= size
