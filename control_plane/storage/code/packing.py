"""Packing of a script's folder into a code bundle, on the machine of whoever submits it.

    with packed(Path("train"), Contents(extras={"data": Path("../data")})) as bundle:
        client.upload_bundle(bundle.path)

The bundle is a pure function of the names, contents and executable bits of its files: sorted, with one date and two
modes, and stored rather than compressed, because compressors differ. Equal folders have equal hashes.
"""

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from control_plane.api.bundles import MAX_BUNDLE_BYTES
from control_plane.core.model.characters import OBEYED
from control_plane.core.model.errors import Invalid
from control_plane.storage.code.archive import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_NAME_BYTES,
    MAX_PART_BYTES,
    RESERVED,
    plain_name,
    reserved_reason,
)
from control_plane.storage.code.ignored import IgnoreRules, is_never_packed, rules_of

LARGEST_NAMED = 5
OTHERWISE = (
    "exclude what the script does not need in a .rayignore file, or submit a path on the cluster with --no-bundle"
)
DATE = (1980, 1, 1, 0, 0, 0)
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A packed bundle: its file, hash, and what is in it."""

    path: Path
    sha256: str
    size_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Contents:
    """Files and folders to pack besides the script's folder, by their path in the bundle.

    They were named by the user, so no ignore file of the script's folder applies to them; their own ones do.
    """

    extras: Mapping[str, Path] = field(default_factory=dict)


@contextmanager
def packed(folder: Path, contents: Contents | None = None, max_bytes: int = MAX_BUNDLE_BYTES) -> Iterator[Bundle]:
    """Pack a folder into a temporary file that is removed at the end of the block.

    Raises `Invalid` for a link that leads out of its folder, something that is no file, a name that not every file
    system takes, or too much; the sentence names it and says what to do.
    """
    files = _files(folder, contents or Contents(), max_bytes)
    with tempfile.TemporaryDirectory(prefix="steerway-") as place:
        path = Path(place) / "code.zip"
        try:
            _write(path, files)
        except OSError as error:
            raise Invalid(f"{folder} cannot be packed: {error.filename or folder}: {error.strerror}") from None
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise _too_large(folder, {name: packed.size_bytes for name, packed in files.items()}, max_bytes)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        yield Bundle(path, sha256, size_bytes, len(files))


@dataclass(frozen=True, slots=True)
class _Packed:
    source: Path
    size_bytes: int
    is_program: bool


def _files(folder: Path, contents: Contents, max_bytes: int) -> dict[str, _Packed]:
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise Invalid(f"{folder} is not a folder, so there is no code to send")
    if folder.resolve() in (Path.home().resolve(), Path(folder.anchor)):
        raise Invalid(
            f"the script lies in {folder} itself, and its whole folder would be sent to the cluster: move it into a "
            "folder of its own, or submit a path on the cluster with --no-bundle"
        )
    files = dict[str, _Packed]()
    for name, source in _walk(folder, folder, "", rules_of(folder)):
        _add(files, name, source)
    for name, extra in sorted(contents.extras.items()):
        if extra.is_dir():
            for inner, source in _walk(extra, extra, name, IgnoreRules(extra)):
                _add(files, inner, source)
        else:
            _add(files, name, extra)
    _check_names(files)
    sizes = {name: packed.size_bytes for name, packed in files.items()}
    if sum(sizes.values()) > max_bytes:
        raise _too_large(folder, sizes, max_bytes)
    return files


def _add(files: dict[str, _Packed], name: str, source: Path) -> None:
    try:
        status = source.stat()
    except OSError as error:
        raise Invalid(f"{source} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(f"{source} is a pipe, a socket or a device and cannot be sent; {OTHERWISE}")
    if name in files and not files[name].source.samefile(source):
        raise Invalid(f"{source} and {files[name].source} would both be {name} in the code bundle; rename one of them")
    files[name] = _Packed(source, status.st_size, bool(status.st_mode & stat.S_IXUSR))
    if len(files) > MAX_ENTRIES:
        raise Invalid(f"{source.parent} and its neighbours have more than {MAX_ENTRIES:,} files: {OTHERWISE}")


def _walk(top: Path, folder: Path, prefix: str, rules: IgnoreRules) -> Iterator[tuple[str, Path]]:
    """Yield (path in the bundle, file) of a folder and those below it. `top`: links may lead anywhere inside of it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise Invalid(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        path = Path(entry.path)
        is_link = entry.is_symlink()
        is_folder = entry.is_dir(follow_symlinks=False)
        # Git takes a link for a file, whatever it leads to.
        if is_never_packed(path, is_folder or (is_link and path.is_dir())) or rules.exclude(path, is_folder):
            continue
        if is_link:
            is_folder = _followed(path, top)
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        if is_folder:
            below = IgnoreRules(path, rules)
            yield from _walk(top, path, name, below)
        else:
            yield name, path


def _followed(link: Path, top: Path) -> bool:
    """Return whether a link leads to a folder. Raises `Invalid` unless it leads to something inside of `top`."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise Invalid(f"{link} is a symbolic link to nothing; remove it, or exclude it in a .rayignore file") from None
    if not target.is_relative_to(top.resolve()):
        raise Invalid(
            f"{link} is a symbolic link to {target}, outside of the folder that is sent: copy the file, or exclude the "
            "link in a .rayignore file"
        )
    if target.is_dir() and link.parent.resolve().is_relative_to(target):
        raise Invalid(f"{link} is a symbolic link to a folder that it lies in; exclude it in a .rayignore file")
    return target.is_dir()


def _check_names(files: Mapping[str, _Packed]) -> None:
    seen = dict[str, str]()
    for name in files:
        parts = PurePosixPath(name).parts
        reason = None
        if OBEYED.search(name) or "\\" in name:
            reason = "has control characters or a backslash in its name"
        elif len(os.fsencode(name)) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
            reason = "has too long a path"
        elif any(len(os.fsencode(part)) > MAX_PART_BYTES for part in parts):
            reason = "has too long a name"
        elif parts[0].partition(".")[0] in RESERVED:
            reason = reserved_reason(parts[0])
        elif (other := seen.setdefault(plain_name(name), name)) != name:
            reason = f"would be the same file as {other!r} where upper and lower case are one"
        if reason:
            raise Invalid(f"{name!r} cannot be sent: it {reason}")


def _write(path: Path, files: Mapping[str, _Packed]) -> None:
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | (0o755 if files[name].is_program else 0o644)) << 16
            entry.file_size = files[name].size_bytes
            with files[name].source.open("rb") as source, archive.open(entry, "w") as packed:
                while piece := source.read(READ_BYTES):
                    packed.write(piece)


def _too_large(folder: Path, sizes: Mapping[str, int], max_bytes: int) -> Invalid:
    folders = dict[str, int]()
    for name, size_bytes in sizes.items():
        for above in list(PurePosixPath(name).parents)[:-1]:
            folders[f"{above}/"] = folders.get(f"{above}/", 0) + size_bytes
    largest = sorted(({**sizes, **folders}).items(), key=lambda one: (-one[1], one[0]))[:LARGEST_NAMED]
    named = ", ".join(f"{name} ({mebibytes(size_bytes)})" for name, size_bytes in largest)
    total = mebibytes(sum(sizes.values()))
    return Invalid(
        f"the code in {folder} is too large to send: {total}, and the limit is {mebibytes(max_bytes)}. "
        f"Largest: {named}. Instead, {OTHERWISE}"
    )


def mebibytes(size_bytes: int) -> str:
    """Return a size for a sentence."""
    return f"{size_bytes / (1 << 20):.1f} MiB"
