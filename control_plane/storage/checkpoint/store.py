"""Checkpoint store: atomic commit, verification and listing. A checkpoint exists when its manifest does.

Every rank writes and hashes its shards; the signed manifest, which lists them all, is written last and atomically: to a
temporary name, fsync, rename, fsync of the folder. A folder without a manifest is an unfinished save or removal.
Nothing here unpickles anything: first `verify`, then load.

Covered: a process or machine that dies anywhere during a save or a removal; files that are damaged, missing, swapped,
linked or planted. A whole older checkpoint put in the place of a newer one of the same name has a valid signature, too:
compare the digest of the manifest with the one in the journal. Not covered: storage that reorders
a rename before the data it names, in spite of fsync; a process of the same user that changes a file between `verify`
and DeepSpeed's use of it. What Steerway itself unpickles is compared as it is read: `open_shard`, `read_shard`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.checkpoint.cleanup import discard, folders, leftovers, space_shortage
from control_plane.storage.checkpoint.manifest import FORMAT, MANIFEST, MAX_MANIFEST_BYTES, Manifest, RankState, Shard
from control_plane.storage.checkpoint.shards import (
    ShardFile,
    hash_shard,
    open_shard,
    read_shard,
    read_through,
    sync,
    sync_folder,
    write_all,
)
from control_plane.storage.checkpoint.signing import SigningKey
from control_plane.storage.failpoints import reach
from control_plane.storage.private import FILE_MODE

__all__ = [
    "MANIFEST",
    "Examined",
    "Manifest",
    "RankState",
    "Shard",
    "ShardFile",
    "SigningKey",
    "commit",
    "discard",
    "examine",
    "hash_shard",
    "leftovers",
    "list_checkpoints",
    "open_shard",
    "read_manifest",
    "read_shard",
    "resign",
    "space_shortage",
    "verify",
]


def commit(root: Path, manifest: Manifest, key: SigningKey) -> str:
    """Sign the manifest and write it atomically, which commits the checkpoint. Returns the manifest's SHA-256.

    Raises `Invalid` if the manifest is inconsistent, `Damaged` if the folder does not contain exactly the shards that
    it lists, in their sizes; `OSError`. Then there is no checkpoint.
    """
    reason = (
        manifest.inconsistency() or _name_mismatch(root, manifest) or (None if manifest.shards else "names no shards")
    )
    if reason:
        raise Invalid(f"the manifest of {manifest.checkpoint} {reason}")
    text = key.sign(manifest).text()
    if len(text) > MAX_MANIFEST_BYTES:
        raise Invalid(f"the manifest of {manifest.checkpoint} has {len(text)} bytes; the limit is {MAX_MANIFEST_BYTES}")
    for folder in sorted({folder for shard in manifest.shards for folder in _folders(shard.path)}, reverse=True):
        sync_folder(root / folder, "checkpoint.folders")
    _compare_files(root, manifest)
    temporary = root / f".{MANIFEST}.tmp"
    reach("manifest.file", "before_create")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(descriptor, text, "manifest.file")
        sync(descriptor, "manifest.file")
    finally:
        os.close(descriptor)
    reach("manifest.file", "before_rename")
    os.rename(temporary, root / MANIFEST)
    reach("manifest.file", "after_rename")
    sync_folder(root, "manifest.folder")
    sync_folder(root.parent, "checkpoint.name")
    return hashlib.sha256(text).hexdigest()


def resign(root: Path, key: SigningKey) -> str:
    """Sign a checkpoint that a user trusts (`--trust`), whoever signed it before. Returns its manifest's new SHA-256.

    The manifest keeps the SHA-256 that the journal recorded. Raises `Damaged` if any byte differs from what was saved.
    """
    manifest = verify(root, None)
    before = manifest.resigned_from or hashlib.sha256(_read_bounded(root)).hexdigest()
    return commit(root, manifest.model_copy(update={"resigned_from": before, "signature": ""}), key)


def read_manifest(root: Path, key: SigningKey | None, recorded_sha256: str = "") -> Manifest:
    """Read the manifest of a checkpoint. Without a key the signature is not checked (`--trust`).

    `recorded_sha256`: the manifest's SHA-256 in the run's journal, if it has one.
    Raises `Damaged` if it is missing or invalid, not signed by this installation, or differs from the recorded one.
    """
    data = _read_bounded(root)
    try:
        plain = json.loads(data, parse_constant=_refuse_constant)
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            format_ = repr(plain["format"])[:40]
            raise Damaged(f"the manifest of {root.name} has format {format_}; this release reads format {FORMAT}")
        manifest = Manifest.model_validate(plain)
        spelled = manifest.text()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"the manifest of {root.name} is invalid at {where or 'its top level'}: {first['msg']}") from None
    except (ValueError, RecursionError, Invalid) as error:
        raise Damaged(f"the manifest of {root.name} cannot be read: {str(error)[:200]}") from None
    if reason := manifest.inconsistency() or _name_mismatch(root, manifest):
        raise Damaged(f"the manifest of {root.name} {reason}")
    if key is not None:
        key.check(manifest, root)
    if spelled != data:
        raise Damaged(f"the manifest of {root.name} was edited: its text is not in canonical form")
    if recorded_sha256 and recorded_sha256 not in (hashlib.sha256(data).hexdigest(), manifest.resigned_from):
        raise Damaged(
            f"checkpoint {root.name} differs from the one recorded in the journal: another one of that name, for "
            "example an older one, is in its place"
        )
    return manifest


def verify(
    root: Path, key: SigningKey | None, ranks: Collection[int] | None = None, recorded_sha256: str = ""
) -> Manifest:
    """Verify every file of a checkpoint and return its manifest; unpickles nothing. Raises `Damaged`, naming the file.

    With `ranks`, only the shards of these ranks of the *saving* job are read and hashed, so that ranks can share the
    work: together they must cover `range(manifest.world_size)`. The list of files is always compared.
    """
    manifest = read_manifest(root, key, recorded_sha256)
    _compare_files(root, manifest)
    for shard in manifest.shards:
        if ranks is None or shard.rank in ranks:
            _compare_content(root, shard)
    return manifest


@dataclass(frozen=True, slots=True)
class Examined:
    """Result of examining a checkpoint folder: its manifest, or why it is not a valid checkpoint."""

    name: str
    manifest: Manifest | None = None
    reason: str | None = None


def examine(folder: Path, key: SigningKey | None) -> list[Examined]:
    """Examine every checkpoint folder, by step and name, invalid ones last. Reads no shards."""
    examined = [_examined(root, key) for root in folders(folder)]
    return sorted(examined, key=lambda one: (one.manifest is None, one.manifest.step if one.manifest else 0, one.name))


def list_checkpoints(folder: Path, key: SigningKey | None) -> list[Manifest]:
    """Return all valid checkpoints by step, then name; unfinished, damaged and foreign ones are left out."""
    return [one.manifest for one in examine(folder, key) if one.manifest is not None]


def _folders(path: str) -> Iterator[Path]:
    yield from Path(path).parents


def _name_mismatch(root: Path, manifest: Manifest) -> str | None:
    name = root.absolute().name
    return None if manifest.checkpoint == name else f"is of checkpoint {manifest.checkpoint[:80]!r}, not of {name!r}"


def _read_bounded(root: Path) -> bytes:
    path = root / MANIFEST
    try:
        if stat.S_ISLNK(path.lstat().st_mode):
            raise Damaged(f"the manifest of {root.name} is a symbolic link")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Damaged(f"the manifest of {root.name} is not a regular file")
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{root.name} has no manifest: the save did not finish, so this is not a checkpoint") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"the manifest of {root.name} cannot be read: {error}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise Damaged(f"the manifest of {root.name} is longer than {MAX_MANIFEST_BYTES:,} bytes")
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _compare_files(root: Path, manifest: Manifest) -> None:
    """Raise `Damaged` unless the folder contains what the manifest lists, and nothing else that a loader would find."""
    try:
        if root.is_symlink():
            raise Damaged(f"checkpoint {root.name} is a symbolic link; move the folder itself here")
        entries = {entry.path: entry for entry in _entries(root, "")}
    except OSError as error:
        raise Damaged(f"checkpoint {root.name} cannot be read: {error}") from None
    for shard in manifest.shards:
        if shard.path not in entries:
            raise Damaged(f"checkpoint {root.name} has no {shard.path}, or it is not visible from this node")
        size_bytes = entries[shard.path].size_bytes
        if size_bytes != shard.size_bytes:
            raise Damaged(
                f"{shard.path} of checkpoint {root.name} has {size_bytes} bytes, but {shard.size_bytes} were saved"
            )
        if entries[shard.path].shared:
            raise Damaged(
                f"other users may write to {shard.path} of checkpoint {root.name}: if nobody has changed it, "
                "`chmod -R go-w` the checkpoint"
            )
    known = {shard.path for shard in manifest.shards}
    known |= {f"{folder}/" for shard in manifest.shards for folder in _folders(shard.path)}
    unknown = sorted(path for path in entries.keys() - known if not _is_note(path))
    if unknown:
        raise Damaged(f"checkpoint {root.name} contains {unknown[0]!r}, which its manifest does not list")


def _is_note(path: str) -> bool:
    """Return whether a file beside the manifest is a harmless note: nothing that a loader or a person would run."""
    return "/" not in path and (path == MANIFEST or path.startswith(".") or path.endswith((".txt", ".md")))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file, or a folder, whose path ends with `/`. `shared`: other users may write to it."""

    path: str
    size_bytes: int = 0
    shared: bool = False


def _entries(root: Path, within: str) -> Iterator[_Entry]:
    """Yield everything below `root`. Raises `Damaged` for anything but regular files and folders."""
    with os.scandir(root / within) as entries:
        for entry in entries:
            path = f"{within}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield _Entry(f"{path}/")
                yield from _entries(root, f"{path}/")
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield _Entry(path, status.st_size, bool(status.st_mode & 0o022))
            else:
                kind = "a symbolic link" if entry.is_symlink() else "not a regular file"
                raise Damaged(f"{path!r} of checkpoint {root.name} is {kind}")


def _compare_content(root: Path, shard: Shard) -> None:
    try:
        content = read_through(root / shard.path)
    except OSError as error:
        raise Damaged(f"{shard.path} of checkpoint {root.name} cannot be read: {error.strerror or error}") from None
    if content != (shard.size_bytes, shard.sha256):
        raise Damaged(f"{shard.path} of checkpoint {root.name} differs from what was saved ({content[0]} bytes)")


def _examined(root: Path, key: SigningKey | None) -> Examined:
    try:
        return Examined(root.name, manifest=read_manifest(root, key))
    except Damaged as error:
        return Examined(root.name, reason=error.reason)
