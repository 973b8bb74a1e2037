"""Uploaded code bundles in HOME/bundles: written in pieces, named by their hash when that is right, removed by age.

    <sha256>.part    what has arrived of a bundle; an interrupted upload continues behind it
    <sha256>.zip     a whole bundle; a run that is begun with it keeps it in its own folder, as a hard link

A bundle gets its name only after its bytes on the disk were hashed, so nothing is trusted of what was written before.
"""

import errno
import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from control_plane.core.model.errors import Conflict, Damaged, Invalid, Overloaded, Unavailable
from control_plane.storage.checkpoint.shards import sync, sync_folder, write_all
from control_plane.storage.code.archive import check_archive, digest_of
from control_plane.storage.failpoints import reach
from control_plane.storage.private import FILE_MODE, make_folder
from control_plane.storage.regular import open_regular

UNFINISHED_FOR_S = 3600.0
"""Age of an unfinished upload, since its last byte, at which it is removed."""

UNUSED_FOR_S = 24 * 3600.0
"""Age of a whole bundle, since it was last asked for, at which it is removed. Runs have their own link to it."""

MAX_KEPT_BUNDLES = 10
"""All bundles together may take the space of so many of the largest size."""


class TooLarge(Invalid):
    """The bundle exceeds the limit of its size."""

    status_hint = 413
    slug = "too-large"


@dataclass(frozen=True, slots=True)
class Received:
    """How much of a bundle has arrived."""

    size_bytes: int
    complete: bool


def bundle_path(home: Path, sha256: str) -> Path:
    """Return the path of a whole uploaded bundle."""
    return home / "bundles" / f"{sha256}.zip"


class BundleUploads:
    """Uploads of this installation. Its calls block on the disk; several processes may use the same folder."""

    def __init__(self, home: Path, max_bytes: int) -> None:
        """Store bundles of at most `max_bytes` under `home`."""
        self.max_bytes = max_bytes
        self._home, self._folder = home, home / "bundles"

    def received(self, sha256: str) -> Received:
        """Return how much of a bundle is here, and keep it from being removed by age. Raises `Unavailable`."""
        try:
            whole = bundle_path(self._home, sha256)
            if whole.is_file():
                os.utime(whole)
                return Received(whole.stat().st_size, complete=True)
            part = self._part(sha256)
            return Received(part.stat().st_size if part.is_file() else 0, complete=False)
        except OSError as error:
            raise _disk_failed(error) from error

    def open_piece(self, sha256: str, offset: int, total_bytes: int) -> "Piece":
        """Begin to write a piece at `offset` of a bundle of `total_bytes`.

        Raises `TooLarge`, `Overloaded` if there is no room for it, `Conflict` if another request is writing the same
        bundle or if the bundle ends elsewhere than at `offset` (its `received_bytes` say where), `Unavailable`.
        """
        if total_bytes > self.max_bytes:
            raise TooLarge(
                f"the code bundle has {total_bytes:,} bytes; the limit of this gateway is {self.max_bytes:,}",
                limit=self.max_bytes,
            )
        try:
            make_folder(self._folder)
            descriptor = os.open(self._part(sha256), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise _disk_failed(error) from error
        try:
            self._claim(descriptor, sha256)
            here = os.fstat(descriptor).st_size
            if offset == 0 and here > total_bytes:
                os.ftruncate(descriptor, 0)  # it was begun with another size
                here = 0
            if offset != here:
                raise Conflict(
                    f"{here:,} bytes of the bundle are here, so it continues there and not at {offset:,}",
                    received_bytes=here,
                )
            self._make_room(sha256, total_bytes)
            os.lseek(descriptor, offset, os.SEEK_SET)
        except OSError as error:
            os.close(descriptor)
            raise _disk_failed(error) from error
        except BaseException:
            os.close(descriptor)
            raise
        return Piece(descriptor)

    def _claim(self, descriptor: int, sha256: str) -> None:
        """Lock the unfinished bundle. Raises `Conflict` if another request has."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            here = os.fstat(descriptor).st_size
            raise Conflict(
                "another request is uploading the same bundle at this moment; try again in a second",
                received_bytes=here,
            ) from None
        try:
            is_ours = os.path.samestat(os.fstat(descriptor), os.stat(self._part(sha256)))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:  # it was completed, or removed by age, between `open` and the lock
            raise Conflict("the bundle was completed or removed at this moment; ask for it again", received_bytes=0)

    def complete(self, sha256: str) -> Received:
        """Give the bundle its name if its bytes have that hash and it is an acceptable archive; else delete it.

        The caller holds its `Piece`. Raises `Invalid`, `Unavailable`.
        """
        part = self._part(sha256)
        try:
            with open_regular(part) as file:
                reason = _reason_against(file, sha256)
                size_bytes = file.seek(0, os.SEEK_END)
            if reason is not None:
                part.unlink()
                raise reason
            reach("bundle.name", "before_rename")
            os.rename(part, bundle_path(self._home, sha256))
            sync_folder(self._folder, "bundle.name")
        except OSError as error:
            raise _disk_failed(error) from error
        return Received(size_bytes, complete=True)

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.part"

    def _make_room(self, sha256: str, wanted_bytes: int) -> None:
        """Remove bundles by age, and the longest unused ones if all together take too much. Raises `Overloaded`."""
        now, kept = time.time(), list[tuple[float, int, Path]]()
        for path in sorted(self._folder.iterdir()):
            if path == self._part(sha256):
                continue
            try:
                status = path.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # another request has just removed it, or completed it
            if now - status.st_mtime > (UNUSED_FOR_S if path.suffix == ".zip" else UNFINISHED_FOR_S):
                _remove(path)
            else:
                kept.append((status.st_mtime, status.st_size, path))
        space_bytes = MAX_KEPT_BUNDLES * self.max_bytes - wanted_bytes
        taken_bytes = sum(size_bytes for _, size_bytes, _ in kept)
        for _, size_bytes, path in sorted(entry for entry in kept if entry[2].suffix == ".zip"):
            if taken_bytes > space_bytes:
                _remove(path)
                taken_bytes -= size_bytes
        if taken_bytes > space_bytes:
            raise Overloaded("unfinished uploads take all the space for code bundles; try again in an hour")


class Piece:
    """Piece of a bundle that is being written. What was written stays, whatever happens then."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append bytes. Raises `Unavailable` if the disk fails."""
        try:
            with self._lock:  # a request that is cancelled closes this while a thread writes
                write_all(self._open(), data, "bundle.piece")
        except OSError as error:
            raise _disk_failed(error) from error

    def settle(self) -> int:
        """Make what was written durable, and return the size of the bundle so far. Raises `Unavailable`."""
        try:
            with self._lock:
                sync(self._open(), "bundle.piece")
                return os.fstat(self._open()).st_size
        except OSError as error:
            raise _disk_failed(error) from error

    def close(self) -> None:
        """Let go of the bundle, so that another request may continue it."""
        with self._lock:
            os.close(self._open())
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            raise Unavailable("the upload of this piece was broken off")
        return self._descriptor


def _reason_against(file: BinaryIO, sha256: str) -> Invalid | None:
    if (found := digest_of(file)) != sha256:
        return Invalid(
            f"the uploaded bundle has the SHA-256 {found[:16]}... and not {sha256[:16]}...; upload it again",
            wrong_hash=True,
        )
    try:
        check_archive(file)
    except Invalid as refusal:
        return refusal
    return None


def _remove(path: Path) -> None:
    """Remove a bundle unless a request is writing it."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (OSError, Damaged):
        return


def _disk_failed(error: OSError) -> Unavailable:
    what = "its disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return Unavailable(f"the gateway cannot store the code bundle: {what}")
