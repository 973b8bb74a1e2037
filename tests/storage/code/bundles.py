"""Bundles for tests: small good ones, and zip archives with one planted flaw each."""

import hashlib
import os
import signal
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

from control_plane.storage import failpoints
from control_plane.storage.code.packing import Contents, packed


def folder_of(root: Path, files: Mapping[str, str]) -> Path:
    """A folder with these texts."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def bytes_of(folder: Path, contents: Contents | None = None) -> bytes:
    """The bundle of a folder."""
    with packed(folder, contents) as bundle:
        return bundle.path.read_bytes()


def sha256_of(data: bytes) -> str:
    """The name of a bundle."""
    return hashlib.sha256(data).hexdigest()


def names_in(data: bytes) -> list[str]:
    """The names of a bundle's entries."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return archive.namelist()


def zip_of(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """An archive of these entries, whatever their names."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
        archive.comment = comment
    return buffer.getvalue()


def with_entry(change: Callable[[zipfile.ZipInfo], None], name: str = "train.py", data: bytes = b"print()") -> bytes:
    """An archive of one entry that was changed before it was written."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    change(entry)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, data)
    return buffer.getvalue()


def patched(data: bytes, signature: bytes, offset: int, layout: str, value: int, which: int = 0) -> bytes:
    """The archive with one number of a header overwritten. `which`: of several headers with this signature."""
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    changed = bytearray(data)
    struct.pack_into(layout, changed, at + offset, value)
    return bytes(changed)


LOCAL, DIRECTORY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def overlapping(copies: int = 50) -> bytes:
    """A bomb: many entries of the directory share the bytes of one, which inflates to a megabyte."""
    one = zip_of(("kernel", b"\0" * (1 << 20)), compression=zipfile.ZIP_DEFLATED)
    start, end = one.index(DIRECTORY), one.index(END)
    header = one[start:end]
    headers = b"".join(header.replace(b"kernel", f"k{number:05}".encode()) for number in range(copies))
    tail = struct.pack("<4s4H2LH", END, 0, 0, copies, copies, len(headers), start, 0)
    return one[:start] + headers + tail


def link_to(target: str) -> bytes:
    """An archive with a symbolic link."""

    def make_link(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = 0o120777 << 16

    return with_entry(make_link, "link", target.encode())


def device() -> bytes:
    """An archive with a device."""

    def make_device(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = 0o020666 << 16

    return with_entry(make_device, "null", b"")


def killed_at(point: str, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed at this failpoint. Answers whether it was."""
    child = os.fork()
    if child == 0:
        try:
            failpoints.arm(f"{point}=kill", tell=lambda point: None)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
