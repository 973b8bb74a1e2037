"""A checkpoint exists when its manifest does.

Every rank writes and hashes its shards; the manifest, which names them all and is signed, is written last: to a
temporary name, synced, renamed, and the folder synced. A folder without a manifest is what a save that did not finish
has left, or a removal that did not. Nothing here unpickles anything: first `verify`, then load.

Covered: a process or machine that dies anywhere during a save or a removal; files that are damaged, missing, swapped,
linked or planted. A whole older checkpoint of the same name in the place of a newer one is signed as well: the digest
of the manifest in the journal tells them apart, so whoever has a record compares it. Not covered: storage that reorders
a rename before the data it names, in spite of fsync; whoever runs as the same user and changes a file between `verify`
and DeepSpeed's use of it. What we unpickle ourselves is compared as it is read: `open_shard`, `read_shard`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.checkpoint.cleanup import discard, folders, leftovers, room_refusal
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
    "newest_good",
    "open_shard",
    "read_manifest",
    "read_shard",
    "resign",
    "room_refusal",
    "verify",
]


def commit(root: Path, manifest: Manifest, key: SigningKey) -> str:
    """Sign the manifest and write it, last and atomically; from here on the checkpoint exists. Answers its SHA-256.

    Raises: `Invalid` if no checkpoint can look like this manifest, `Damaged` if the folder does not hold the shards
    that it names, each in its size, and nothing else besides; `OSError`. Then there is no checkpoint.
    """
    problem = manifest.problem() or _name_problem(root, manifest) or (None if manifest.shards else "names no shards")
    if problem:
        raise Invalid(f"the manifest of {manifest.checkpoint} {problem}")
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
    """Sign a checkpoint that somebody trusts, whoever signed it before. Answers the new SHA-256 of its manifest.

    The manifest keeps the one that the run's journal knows. Raises `Damaged` if a byte is not what was saved.
    """
    found = verify(root, None)
    before = found.resigned_from or hashlib.sha256(_read_bounded(root)).hexdigest()
    return commit(root, found.model_copy(update={"resigned_from": before, "signature": ""}), key)


def read_manifest(root: Path, key: SigningKey | None, recorded_sha256: str = "") -> Manifest:
    """The manifest of a checkpoint's folder. Without a key its signature is not looked at: somebody trusts it.

    `recorded_sha256` is what the run's journal says of it, where that says anything.
    Raises `Damaged` if there is none, if it makes no sense, if this installation did not sign it, or if it is another
    one than was recorded.
    """
    data = _read_bounded(root)
    try:
        plain = json.loads(data, parse_constant=_refuse_constant)
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            told = repr(plain["format"])[:40]
            raise Damaged(f"the manifest of {root.name} has format {told}; this program understands format {FORMAT}")
        manifest = Manifest.model_validate(plain)
        spelled = manifest.text()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"the manifest of {root.name} makes no sense at {where or 'its top'}: {first['msg']}") from None
    except (ValueError, RecursionError, Invalid) as error:
        raise Damaged(f"the manifest of {root.name} cannot be read: {str(error)[:200]}") from None
    if problem := manifest.problem() or _name_problem(root, manifest):
        raise Damaged(f"the manifest of {root.name} {problem}")
    if key is not None:
        key.check(manifest, root)
    if spelled != data:
        raise Damaged(f"the manifest of {root.name} was edited: it is not spelled as it was written")
    if recorded_sha256 and recorded_sha256 not in (hashlib.sha256(data).hexdigest(), manifest.resigned_from):
        raise Damaged(
            f"checkpoint {root.name} is not the one that the journal recorded: another one of that name lies in its "
            "place, for example an older one"
        )
    return manifest


def verify(
    root: Path, key: SigningKey | None, ranks: Collection[int] | None = None, recorded_sha256: str = ""
) -> Manifest:
    """The manifest, after every file was compared with it; none is unpickled. Raises `Damaged`, naming the file.

    With `ranks`, only what these ranks of the *saving* job wrote is read and hashed, so that ranks can share the work:
    together they must cover `range(manifest.world_size)`. Which files there are is compared in any case.
    """
    manifest = read_manifest(root, key, recorded_sha256)
    _compare_files(root, manifest)
    for shard in manifest.shards:
        if ranks is None or shard.rank in ranks:
            _compare_content(root, shard)
    return manifest


@dataclass(frozen=True, slots=True)
class Examined:
    """A folder among the checkpoints, for people: what it holds, or why it is no checkpoint of ours."""

    name: str
    manifest: Manifest | None = None
    problem: str | None = None


def examine(folder: Path, key: SigningKey | None) -> list[Examined]:
    """Every folder among the checkpoints, by step and name; those that cannot be used come last. Reads no shard."""
    found = [_examined(root, key) for root in folders(folder)]
    return sorted(found, key=lambda one: (one.manifest is None, one.manifest.step if one.manifest else 0, one.name))


def list_checkpoints(folder: Path, key: SigningKey | None) -> list[Manifest]:
    """Every checkpoint that exists, by step, then name. What did not finish, is damaged or is foreign is left out."""
    return [one.manifest for one in examine(folder, key) if one.manifest is not None]


def newest_good(
    folder: Path, key: SigningKey | None, candidates: Sequence[str]
) -> tuple[Manifest | None, list[tuple[str, str]]]:
    """The first of `candidates` (names, best first) of which every byte verifies.

    Also answers the name of, and the reason against, each one that was refused before it.
    """
    refused = list[tuple[str, str]]()
    for name in candidates:
        try:
            if not _is_name(name):
                raise Damaged(f"{name[:80]!r} is not the name of a checkpoint")
            return verify(folder / name, key), refused
        except Damaged as error:
            refused.append((name, error.reason))
    return None, refused


def _folders(path: str) -> Iterator[Path]:
    yield from Path(path).parents


def _name_problem(root: Path, manifest: Manifest) -> str | None:
    name = root.absolute().name
    return None if manifest.checkpoint == name else f"is of checkpoint {manifest.checkpoint[:80]!r}, not of {name!r}"


def _is_name(name: str) -> bool:
    return bool(name) and name == os.path.basename(name) and name.isprintable() and not name.startswith(".")


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
    """Raises `Damaged` unless the folder holds what the manifest names, and nothing else that a loader would find."""
    try:
        if root.is_symlink():
            raise Damaged(f"checkpoint {root.name} is a symbolic link; move the folder itself to this place")
        found = {entry.path: entry for entry in _entries(root, "")}
    except OSError as error:
        raise Damaged(f"checkpoint {root.name} cannot be read: {error}") from None
    for shard in manifest.shards:
        if shard.path not in found:
            raise Damaged(f"checkpoint {root.name} lacks {shard.path}, or it is out of sight from here")
        size_bytes = found[shard.path].size_bytes
        if size_bytes != shard.size_bytes:
            raise Damaged(
                f"{shard.path} of checkpoint {root.name} has {size_bytes} bytes; {shard.size_bytes} were saved"
            )
        if found[shard.path].shared:
            raise Damaged(
                f"others than its owner may write to {shard.path} of checkpoint {root.name}: `chmod -R go-w` the "
                "checkpoint if nobody has"
            )
    known = {shard.path for shard in manifest.shards}
    known |= {f"{folder}/" for shard in manifest.shards for folder in _folders(shard.path)}
    unknown = sorted(path for path in found.keys() - known if not _is_note(path))
    if unknown:
        raise Damaged(f"checkpoint {root.name} holds {unknown[0]!r}, which its manifest does not name")


def _is_note(path: str) -> bool:
    """Beside the manifest people may lay notes. What a loader finds there, or a person runs, is none."""
    return "/" not in path and (path == MANIFEST or path.startswith(".") or path.endswith((".txt", ".md")))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file, or a folder, whose path ends with `/`. `shared`: others than its owner may write to it."""

    path: str
    size_bytes: int = 0
    shared: bool = False


def _entries(root: Path, within: str) -> Iterator[_Entry]:
    """Everything below, by its path from `root`. Raises `Damaged` for what is neither a regular file nor a folder."""
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
        found = read_through(root / shard.path)
    except OSError as error:
        raise Damaged(f"{shard.path} of checkpoint {root.name} cannot be read: {error.strerror or error}") from None
    if found != (shard.size_bytes, shard.sha256):
        raise Damaged(f"{shard.path} of checkpoint {root.name} is not what was saved ({found[0]} bytes)")


def _examined(root: Path, key: SigningKey | None) -> Examined:
    try:
        return Examined(root.name, manifest=read_manifest(root, key))
    except Damaged as error:
        return Examined(root.name, problem=error.reason)
