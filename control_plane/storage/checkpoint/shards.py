"""Shard files of a checkpoint: written and hashed in one pass, durable before they are renamed to their name."""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.checkpoint.manifest import Shard, is_inside
from control_plane.storage.failpoints import halves, reach
from control_plane.storage.private import FILE_MODE, make_folder

READ_BYTES = 1 << 20


class ShardFile:
    """Writer of a shard: a binary file, e.g. for `torch.save`, that is renamed to its name once it is durable.

        with ShardFile(root, "state/rank-0-random.pt", rank=0) as file:
            torch.save(state, file)
        shard = file.shard

    If the block raises, no file has the shard's name. Every call may raise `OSError`.
    """

    def __init__(self, root: Path, relative_path: str, rank: int) -> None:
        """Create the file and its parent folders. Raises `Invalid` if the path leaves the checkpoint."""
        if not is_inside(relative_path):
            raise Invalid(
                f"{relative_path!r} is not a valid shard path: it must stay below the checkpoint, without '..'"
            )
        self._root, self._path, self._rank = root, root / relative_path, rank
        self._temporary = self._path.with_name(f".{self._path.name}.tmp")
        self._digest, self._size_bytes = hashlib.sha256(), 0
        self._shard: Shard | None = None
        reach("shard.file", "before_create")
        make_folder(self._path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = os.open(self._temporary, flags, FILE_MODE)
        reach("shard.file", "after_create")

    def write(self, data: Any) -> int:
        """Write any contiguous buffer; return its size in bytes."""
        if self._descriptor is None:
            raise ValueError(f"{self._path.name} is closed")
        block = memoryview(data).cast("B")
        write_all(self._descriptor, block, "shard.file")
        self._digest.update(block)
        self._size_bytes += block.nbytes
        return block.nbytes

    def flush(self) -> None:
        """Do nothing; writes are unbuffered."""

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._size_bytes

    def close(self) -> None:
        """Fsync the file, then rename it to its name. Idempotent."""
        if self._descriptor is None:
            return
        try:
            # After an error of fsync the data may be gone: it must not be retried.
            sync(self._descriptor, "shard.file")
            reach("shard.file", "before_rename")
            os.rename(self._temporary, self._path)
            reach("shard.file", "after_rename")
        except BaseException:
            self.abandon()
            raise
        os.close(self._descriptor)
        self._descriptor = None
        sync_folder(self._path.parent, "shard.folder")
        path = self._path.relative_to(self._root).as_posix()
        self._shard = Shard(path=path, rank=self._rank, size_bytes=self._size_bytes, sha256=self._digest.hexdigest())

    def abandon(self) -> None:
        """Remove what was written. Does nothing after `close`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            reach("shard.abandoned", "before_unlink")
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)

    @property
    def shard(self) -> Shard:
        """Return the description of the written shard. Raises `ValueError` before `close` and after `abandon`."""
        if self._shard is None:
            raise ValueError(f"{self._path.name} is not complete")
        return self._shard

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def hash_shard(root: Path, path: Path, rank: int) -> Shard:
    """Fsync and hash a file. Raises `OSError`, or `Damaged` if it is not a regular file."""
    size_bytes, sha256 = read_through(path, durable=True)
    return Shard(path=path.relative_to(root).as_posix(), rank=rank, size_bytes=size_bytes, sha256=sha256)


def read_through(path: Path, durable: bool = False) -> tuple[int, str]:
    """Return size in bytes and SHA-256 of a regular file (no symbolic link). Raises `OSError`, `Damaged`."""
    descriptor = _open(path)
    try:
        content = _hash(descriptor)
        if durable:
            sync(descriptor, "shard.found")
    finally:
        os.close(descriptor)
    return content


def open_shard(root: Path, shard: Shard) -> BinaryIO:
    """Open a shard for reading after verifying its hash, on one descriptor, so that a replaced file is never read.

    Raises `OSError`, or `Damaged` if it differs from what was saved.
    """
    descriptor = _open(root / shard.path)
    try:
        if _hash(descriptor) != (shard.size_bytes, shard.sha256):
            raise Damaged(f"{shard.path} of checkpoint {root.name} differs from what was saved")
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_shard(root: Path, shard: Shard) -> bytes:
    """Read a small shard into memory and verify its hash. Raises like `open_shard`."""
    descriptor = _open(root / shard.path)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(shard.size_bytes + 1)
    if (len(content), hashlib.sha256(content).hexdigest()) != (shard.size_bytes, shard.sha256):
        raise Damaged(f"{shard.path} of checkpoint {root.name} differs from what was saved")
    return content


def _open(path: Path) -> int:
    # Without O_NONBLOCK, opening a named pipe would block until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{path.name} is not a regular file")
    return descriptor


def _hash(descriptor: int) -> tuple[int, str]:
    digest, size_bytes = hashlib.sha256(), 0
    while block := os.read(descriptor, READ_BYTES):
        digest.update(block)
        size_bytes += len(block)
    return size_bytes, digest.hexdigest()


def write_all(descriptor: int, data: "bytes | memoryview", at: str) -> None:
    """Write every byte, in several calls if needed. `at`: the failpoint's site, here and below."""
    reach(at, "before_write")
    for rest in halves(at, memoryview(data)):
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def sync(descriptor: int, at: str) -> None:
    """Fsync an open file."""
    reach(at, "before_sync")
    os.fsync(descriptor)
    reach(at, "after_sync")


def sync_folder(folder: Path, at: str) -> None:
    """Fsync a folder, which makes the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor, at)
    finally:
        os.close(descriptor)
