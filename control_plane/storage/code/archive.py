"""Code bundles as untrusted zip archives: rules for their entries, and their unpacking with every byte counted.

Covered: paths out of the folder, names that two file systems would read differently, links and devices, encrypted or
unknown compression, overlapping entries, headers that lie about sizes (zip bombs), archives hidden before, after or
inside the directory of another one. An archive inside a bundle is a file like any other; it is never unpacked.
"""

import hashlib
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from control_plane.core.model.characters import OBEYED
from control_plane.core.model.errors import Invalid
from control_plane.storage.private import FOLDER_MODE, make_folder

MAX_ENTRIES = 20_000
"""Files of one bundle: a large code base has a tenth of it; a folder of images does not belong in a bundle."""

MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 100
"""Unpacked by packed bytes. Source code compresses five-fold, a CSV file twenty-fold, a zip bomb a thousand-fold."""

SMALL_BYTES = 4 << 20
"""Unpacked size to which the ratio does not matter: a file of zeros is no attack."""

MAX_NAME_BYTES, MAX_PART_BYTES, MAX_DEPTH = 1024, 255, 64
"""The limits of file systems: of a path within the run's folder, of one name in it, and of folders in folders."""

MAX_ENTRY_HEADER_BYTES = 2048
READ_BYTES = 256 * 1024

RESERVED = frozenset({"control_plane", "ray_jobs", "steerway", "sitecustomize", "usercustomize"})
"""Modules at a bundle's top that would hide Steerway's own, or run in every Python process of the run."""

_FILE_MODE, _PROGRAM_MODE = 0o600, 0o700
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64_LOCATOR = b"PK\x06\x07"
_ENCRYPTED_OR_PATCHED = 0x1 | 0x20 | 0x40 | 0x2000
_UTF8 = 0x800
_DRIVE = re.compile(r"[A-Za-z]:")
_UNICODE_PATH = 0x7075


def check_archive(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Return an archive's entries after checking all that can be known before they are unpacked. Raises `Invalid`."""
    size_bytes = file.seek(0, os.SEEK_END)
    directory_at = _check_end(file, size_bytes)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, UnicodeDecodeError, NotImplementedError, struct.error) as error:
        raise _refused(f"its directory cannot be read ({error})") from None
    for entry in entries:
        if reason := _reason_against(entry):
            raise _refused(f"its entry {_shown(entry)} {reason}")
    _check_names(entries)
    _check_places(file, entries, directory_at)
    unpacked_bytes = sum(entry.file_size for entry in entries)
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise _refused(f"it would unpack to {unpacked_bytes:,} bytes; the limit is {MAX_UNPACKED_BYTES:,}")
    for entry in entries:
        if entry.file_size > max(SMALL_BYTES, MAX_RATIO * entry.compress_size):
            raise _refused(f"its entry {_shown(entry)} would unpack to {MAX_RATIO} times its size: a zip bomb?")
    if unpacked_bytes > max(SMALL_BYTES, MAX_RATIO * size_bytes):
        raise _refused(f"it would unpack to {unpacked_bytes:,} bytes, more than {MAX_RATIO} times its size")
    return entries


def unpack(file: BinaryIO, folder: Path) -> None:
    """Check the archive and unpack it into a new folder. Raises `Invalid`, `OSError`; then the folder is removed."""
    entries = check_archive(file)
    folder.mkdir(mode=FOLDER_MODE)
    try:
        left = MAX_UNPACKED_BYTES
        with zipfile.ZipFile(file) as archive:
            for entry in entries:
                left -= _unpack_entry(archive, entry, folder, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _refused(f"it cannot be unpacked: {error}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def changed_files(file: BinaryIO, folder: Path) -> list[str]:
    """Return the entries that a folder, unpacked from this archive, no longer holds as they were. Raises `Invalid`."""
    entries = check_archive(file)
    changed = []
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in entries:
                if not _is_unchanged(archive, entry, folder / entry.filename):
                    changed.append(entry.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refused(f"it cannot be read: {error}") from None
    return changed


def _is_unchanged(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bool:
    try:
        status = path.lstat()
        if entry.is_dir():
            return stat.S_ISDIR(status.st_mode)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.file_size:
            return False
        with archive.open(entry) as packed, path.open("rb") as unpacked:
            while piece := packed.read(READ_BYTES):
                if unpacked.read(len(piece)) != piece:
                    return False
    except OSError:
        return False
    return True


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, left: int) -> int:
    """Unpack one entry and return its bytes, counted while they are inflated."""
    path = folder / entry.filename
    if entry.is_dir():
        make_folder(path)
        return 0
    make_folder(path.parent)
    is_program = entry.create_system == 3 and (entry.external_attr >> 16) & 0o111
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, _PROGRAM_MODE if is_program else _FILE_MODE)
    count = 0
    with os.fdopen(descriptor, "wb") as unpacked, archive.open(entry) as packed:
        while piece := packed.read(READ_BYTES):
            count += len(piece)
            if count > min(entry.file_size, left):
                raise _refused(f"its entry {_shown(entry)} is larger than it says")
            unpacked.write(piece)
    if count != entry.file_size:
        raise _refused(f"its entry {_shown(entry)} has {count:,} bytes, but says {entry.file_size:,}")
    return count


def _check_end(file: BinaryIO, size_bytes: int) -> int:
    """Return where the archive's directory begins. Checked before it is read: a hostile one fills the memory.

    Python's reader would search for the end of an archive, and accept bytes before and after it: then two programs
    may see two archives in one file.
    """
    file.seek(max(0, size_bytes - _END.size - 20))
    tail = file.read(_END.size + 20)
    if len(tail) < _END.size:
        raise _refused("it is not a zip archive, or was cut off")
    signature, disk, first_disk, here, count, directory_bytes, directory_at, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06":
        raise _refused("it is not a zip archive, was cut off, or has something behind its end")
    if tail[: -_END.size].startswith(_ZIP64_LOCATOR) or comment or disk or first_disk or here != count:
        raise _refused("it is a zip archive of a kind that bundles are not: zip64, with a comment, or in several parts")
    if count > MAX_ENTRIES:
        raise _refused(f"it has {count:,} entries; the limit is {MAX_ENTRIES:,}")
    if directory_bytes > count * MAX_ENTRY_HEADER_BYTES or directory_at + directory_bytes + _END.size != size_bytes:
        raise _refused("its directory is not where, or as large as, its end says")
    return int(directory_at)


def _reason_against(entry: zipfile.ZipInfo) -> str | None:
    """Return the reason why an entry is refused, or None."""
    if reason := _reason_against_name(entry):
        return reason
    if entry.flag_bits & _ENCRYPTED_OR_PATCHED:
        return "is encrypted, or a patch"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"has the unknown compression {entry.compress_type}; stored and deflated entries are accepted"
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        return "is stored, but has two sizes"
    if entry.create_system == 3:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            return "is a symbolic link, a device or another special file"
    if entry.is_dir() and entry.file_size:
        return "is a folder with contents of its own"
    return None


def _reason_against_name(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if name != entry.orig_filename or _has_unicode_path(entry.extra):
        return "has two names"
    if not name.isascii() and not entry.flag_bits & _UTF8:
        return "has a name that is not UTF-8"
    if OBEYED.search(name):
        return "has a name with control characters"
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        return "has an absolute path, a backslash or a drive in its name"
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "has a path that leaves its folder, or an empty part"
    if len(os.fsencode(name)) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        return f"has too long a path; the limits are {MAX_NAME_BYTES} bytes and {MAX_DEPTH} folders"
    if any(len(os.fsencode(part)) > MAX_PART_BYTES for part in parts):
        return f"has too long a name; the limit is {MAX_PART_BYTES} bytes"
    if parts[0].partition(".")[0] in RESERVED:
        return reserved_reason(parts[0])
    return None


def digest_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, from its beginning."""
    hashing = hashlib.sha256()
    file.seek(0)
    while piece := file.read(READ_BYTES):
        hashing.update(piece)
    return hashing.hexdigest()


def reserved_reason(name: str) -> str:
    """Return the reason why a module of this name may not be at a bundle's top."""
    module = name.partition(".")[0]
    return f"would hide a module of Steerway's or of Python's, {module}: rename it, or add it to .rayignore"


def _has_unicode_path(extra: bytes) -> bool:
    """Return whether the extra fields hold a second name, which some programs prefer; malformed ones count, too."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == _UNICODE_PATH or len(extra) < 4 + length:
            return True
        extra = extra[4 + length :]
    return bool(extra)


def _check_names(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raise `Invalid` if two names would be one file on some file system, or a file is used as a folder."""
    folders, files = dict[str, str](), dict[str, str]()
    for entry in entries:
        parts = entry.filename.removesuffix("/").split("/")
        paths = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        for path in paths if entry.is_dir() else paths[:-1]:
            if folders.setdefault(plain_name(path), path) != path:
                raise _refused(f"its folders {folders[plain_name(path)]!r} and {path!r} would be one")
        if entry.is_dir():
            continue
        if (other := files.setdefault(plain_name(paths[-1]), entry.filename)) is not entry.filename:
            raise _refused(f"its entries {other!r} and {entry.filename!r} would be one file")
    if both := sorted(folders.keys() & files.keys()):
        raise _refused(f"its entry {files[both[0]]!r} is a file and a folder")


def plain_name(path: str) -> str:
    """Return a name as file systems compare it that ignore case and composition of letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _check_places(file: BinaryIO, entries: Sequence[zipfile.ZipInfo], directory_at: int) -> None:
    """Raise `Invalid` unless the entries lie one behind the other, from the first byte to the directory.

    A zip bomb lets thousands of entries share the same bytes.
    """
    end = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        file.seek(entry.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise _refused(f"its entry {_shown(entry)} is not where the directory says")
        _, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
        if entry.header_offset < end or (not end and entry.header_offset):
            raise _refused(f"its entry {_shown(entry)} overlaps another one, or something is before the first")
        if method != entry.compress_type or (flags ^ entry.flag_bits) & _ENCRYPTED_OR_PATCHED:
            raise _refused(f"its entry {_shown(entry)} has two headers that differ")
        end = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes + entry.compress_size
    if end > directory_at:
        raise _refused("its last entry overlaps the directory")


def _shown(entry: zipfile.ZipInfo) -> str:
    return repr(entry.filename[:120])


def _refused(reason: str) -> Invalid:
    return Invalid(f"the code bundle is refused: {reason}")
