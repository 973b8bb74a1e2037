"""Damage, done to a journal on purpose: its files as bytes in, files with one thing wrong out."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from control_plane.storage.journal.audit import Audit, Head, audit
from control_plane.storage.journal.segments import seal, unseal

Files = dict[str, bytes]


class Place(NamedTuple):
    """A line: its file, and its number from 1."""

    file: str
    line: int


def files_of(directory: Path) -> Files:
    """The segments, by name, oldest first."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def audited(directory: Path, files: Files, expect: Head | None = None) -> Audit:
    """The audit of these files, laid into this folder in the place of what is there."""
    for path in directory.iterdir():
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        if not (directory / name).is_file() or (directory / name).read_bytes() != data:
            (directory / name).write_bytes(data)
    return audit(directory, expect)


def lines_of(files: Files) -> dict[Place, bytes]:
    """Every line with its LF, in order."""
    return {
        Place(name, number): line
        for name, data in files.items()
        for number, line in enumerate(data.splitlines(keepends=True), start=1)
    }


def files_with(files: Files, lines: dict[Place, bytes]) -> Files:
    """The files that these lines make; what a place holds may be no line, or several."""
    return {name: b"".join(line for place, line in lines.items() if place.file == name) for name in files}


def cuts(files: Files, name: str) -> Iterator[tuple[int, Files]]:
    """One file, cut at each byte."""
    for size_bytes in range(len(files[name])):
        yield size_bytes, files | {name: files[name][:size_bytes]}


def flips(files: Files, name: str, bits: int = 1) -> Iterator[tuple[int, Files]]:
    """One file with one bit of each byte flipped, another one in each; or with each of the eight."""
    data = files[name]
    for offset in range(len(data)):
        for bit in range(8) if bits == 8 else [offset % 8]:
            yield offset, files | {name: data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]}


def swaps(files: Files) -> Iterator[tuple[Place, Place, Files]]:
    """Two lines exchanged, each with each."""
    lines = lines_of(files)
    for one, other in combinations(lines, 2):
        yield one, other, files_with(files, lines | {one: lines[other], other: lines[one]})


def deletions(files: Files) -> Iterator[tuple[Place, Files]]:
    """Each line taken out."""
    lines = lines_of(files)
    for place in lines:
        yield place, files_with(files, lines | {place: b""})


def copies(files: Files) -> Iterator[tuple[Place, Place, Files]]:
    """Each line once more, behind each."""
    lines = lines_of(files)
    for copied in lines:
        for behind in lines:
            yield copied, behind, files_with(files, lines | {behind: lines[behind] + lines[copied]})


def edited(line: bytes, **changes: Any) -> bytes:
    """The line with other values, and its checksum made good."""
    return seal(unseal(line[:-1]) | changes) + b"\n"
