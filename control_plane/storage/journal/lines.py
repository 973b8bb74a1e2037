"""Lines of a possibly damaged segment, each parsed and compared with its checksum."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from control_plane.storage.journal.segments import segment_name, unseal

ZEROS = bytes(16)
"""What a lost sector leaves, however little of it lies in this line; other damage hardly ever looks like that."""

Flaw = Literal["cut", "zeros", "bytes"]
"""Damage of one line: its end is missing, it contains zeros of a lost sector, or other bytes have changed."""


@dataclass(slots=True)
class JournalLine:
    """One line as it lies in a file. `plain` and `digest` are empty if it cannot be read.

    `flaw` is None if the line matches its checksum and is complete; `flaw_at` is the offset of the flaw in the file.
    """

    segment: int
    number: int
    offset: int
    raw: bytes
    plain: dict[str, Any] | None
    digest: str = ""
    flaw: Flaw | None = None
    flaw_at: int = 0
    ended: bool = True

    @property
    def file(self) -> str:
        """Return the name of its file."""
        return segment_name(self.segment)

    @property
    def is_header(self) -> bool:
        """Return whether it is a segment header; not necessarily that of its own segment."""
        return self.plain is not None and self.plain.get("type") == "Segment"

    @property
    def prev(self) -> Any:
        """Return the hash of its predecessor, as the line states it."""
        return self.plain.get("prev") if self.plain else None

    def where(self) -> str:
        """Return its location for a message."""
        return f"{self.file}, line {self.number}"


def parse_lines(segment: int, data: bytes) -> list[JournalLine]:
    """Parse all lines of a segment, readable or not, in file order."""
    return [_parse(segment, number, *chunk) for number, chunk in enumerate(_chunks(data), start=1)]


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        yield start, data[start : end if end >= 0 else len(data)], end >= 0
        start = end + 1 if end >= 0 else len(data)


def _parse(segment: int, number: int, offset: int, raw: bytes, ended: bool) -> JournalLine:
    plain = _plain(raw)
    line = JournalLine(segment, number, offset, raw, plain, ended=ended)
    if plain is not None:
        line.digest = sha256(raw).hexdigest()
    if not ended and _plain(raw[:-1]) is None:
        line.flaw, line.flaw_at = "cut", offset + len(raw)
    elif plain is None:
        line.flaw, line.flaw_at = ("zeros", offset + raw.find(ZEROS)) if ZEROS in raw else ("bytes", offset)
    return line


def _plain(raw: bytes) -> dict[str, Any] | None:
    try:
        return unseal(raw)
    except (ValueError, RecursionError):
        return None
