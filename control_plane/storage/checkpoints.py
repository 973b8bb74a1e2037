"""A checkpoint exists when its manifest does.

Every rank writes and hashes its shards; the manifest, which names them all, is written last: to a temporary name,
synced, renamed, and the folder synced. A folder without a manifest is the remains of a save that did not finish.

Covered: a process or machine that dies anywhere during a save. Not covered: storage that reorders a rename before
the data it names, in spite of fsync.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from control_plane.core.commands import Words
from control_plane.core.errors import Damaged

MANIFEST = "manifest.json"
READ_BYTES = 1 << 20


class Shard(Words):
    """One file of a checkpoint. `path` is relative to the checkpoint's folder."""

    path: str
    rank: int
    size_bytes: int
    sha256: str


class Manifest(Words):
    """The file that makes a checkpoint."""

    format: int = 1
    checkpoint: str
    run: str
    generation: int
    step: int
    world_size: int
    label: str | None = None
    shards: tuple[Shard, ...]
    samples_consumed: int
    knobs: dict[str, Any] = {}
    settled: tuple[str, ...] = Field(default=(), description="uuids of the commands that this state contains")
    versions: dict[str, str] = {}

    @property
    def size_bytes(self) -> int:
        """All shards together."""
        return sum(shard.size_bytes for shard in self.shards)


def hash_shard(root: Path, path: Path, rank: int) -> Shard:
    """Make one file durable, and describe it."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            size_bytes += len(block)
        os.fsync(file.fileno())
    return Shard(path=str(path.relative_to(root)), rank=rank, size_bytes=size_bytes, sha256=digest.hexdigest())


def commit(root: Path, manifest: Manifest) -> str:
    """Write the manifest, last and atomically; from here on the checkpoint exists. Answers its SHA-256."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False).encode()
    for folder in {(root / shard.path).parent for shard in manifest.shards}:
        sync_folder(folder)
    temporary = root / f".{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(root / MANIFEST)
    sync_folder(root)
    sync_folder(root.parent)
    return hashlib.sha256(text).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(root: Path) -> Manifest:
    """The manifest of a checkpoint's folder. Raises `Damaged` if there is none, or if it makes no sense."""
    try:
        return Manifest.model_validate_json((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{root.name} has no manifest: the save did not finish, so this is not a checkpoint") from None
    except (OSError, ValidationError) as error:
        raise Damaged(f"the manifest of {root.name} cannot be read: {str(error).splitlines()[0]}") from None


def verify(root: Path) -> Manifest:
    """The manifest, after every shard's size and hash was compared. Raises `Damaged`, naming the file."""
    manifest = read_manifest(root)
    for shard in manifest.shards:
        path = root / shard.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise Damaged(f"checkpoint {root.name} names a file outside of itself: {shard.path}")
        if not path.is_file():
            raise Damaged(f"checkpoint {root.name} lacks {shard.path}")
        found = hash_shard(root, path, shard.rank)
        if found != shard:
            raise Damaged(f"{shard.path} of checkpoint {root.name} is not what was saved ({found.size_bytes} bytes)")
    return manifest


def list_checkpoints(folder: Path) -> list[Manifest]:
    """Every checkpoint that exists, by step. Unfinished saves are not checkpoints and are left out."""
    if not folder.is_dir():
        return []
    roots = [root for root in folder.iterdir() if (root / MANIFEST).is_file()]
    return sorted((read_manifest(root) for root in roots), key=lambda manifest: manifest.step)
