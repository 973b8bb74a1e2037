"""What lies in the files of a damaged journal: their lines, and what one changed bit has made of them, put right.

A checksum finds out *that* a line has changed. CRC-32 is linear, so if one bit has changed it also tells *which*: the
difference of the two checksums depends on nothing but the bit's distance from the end. A bit may also turn the LF
between two lines into something else, or a byte of a line into an LF; then two lines become one, or one two.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from control_plane.storage.journal.segments import segment_name, unseal

CRC_TABLE = [zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)]
"""What a byte that differs by `byte` changes in the checksum of a text that ends with it."""

MAX_REPAIRED_BYTES = 16 * 2**10
"""A changed bit is looked for in lines up to this length: each byte costs eight entries of a table."""

SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"\}')
SEAL_BYTES = len(b',"crc":"00000000"}')
LF = ord("\n")
ZEROS = bytes(16)
"""What a lost sector leaves, however little of it lies in this line; other damage is hardly ever that."""

ONE_BIT = {1 << bit for bit in range(8)}


@dataclass(slots=True)
class JournalLine:
    """One line as it lies in a file. `plain` and `digest` are of what was written, as far as that is known.

    `flaw` is None for a line that is what its checksum says; `flaw_at` is the offset in the file of what has changed.
    """

    segment: int
    number: int
    offset: int
    raw: bytes
    plain: dict[str, Any] | None
    digest: str = ""
    flaw: str | None = None
    flaw_at: int = 0
    ended: bool = True

    @property
    def file(self) -> str:
        """The name of the file it lies in."""
        return segment_name(self.segment)

    @property
    def is_header(self) -> bool:
        """Whether it is the header of a segment; not necessarily of this one."""
        return self.plain is not None and self.plain.get("type") == "Segment"

    @property
    def prev(self) -> Any:
        """The hash of the line that it was written after."""
        return self.plain.get("prev") if self.plain else None

    def where(self) -> str:
        """The place, for a sentence."""
        return f"{self.file}, line {self.number}"


def parse_lines(segment: int, data: bytes) -> list[JournalLine]:
    """The lines of one segment's bytes, in their order."""
    chunks = list(_chunks(data))
    found, number, skip = list[JournalLine](), 1, 0
    for at, (offset, raw, ended) in enumerate(chunks):
        if skip:
            skip -= 1
            continue
        piece = _whole(segment, number, offset, raw, ended)
        following = chunks[at + 1] if at + 1 < len(chunks) else None
        if piece is None and following is not None and (piece := _joined(segment, number, offset, raw, following)):
            skip = 1
        several = [piece] if piece else list(_parts(segment, number, offset, raw, ended))
        found += several
        number += len(several)
    return found


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        yield start, data[start : end if end >= 0 else len(data)], end >= 0
        start = end + 1 if end >= 0 else len(data)


def _whole(segment: int, number: int, offset: int, raw: bytes, ended: bool) -> JournalLine | None:
    """The line if it is one, perhaps with one changed bit."""
    if (plain := plain_of(raw)) is not None:
        piece = JournalLine(segment, number, offset, raw, plain, sha256(raw).hexdigest(), ended=ended)
        if not ended:
            piece.flaw, piece.flaw_at = "cut", offset + len(raw)
        return piece
    if not ended and (plain := plain_of(raw[:-1])) is not None and raw[-1] ^ LF in ONE_BIT:
        return _repaired(segment, number, offset, raw[:-1], plain, len(raw) - 1)
    at = changed_bit(raw)
    if at is None:
        return None
    right = bytearray(raw)
    right[at[0]] ^= at[1]
    plain = plain_of(bytes(right))
    return None if plain is None else _repaired(segment, number, offset, bytes(right), plain, at[0])


def _repaired(segment: int, number: int, offset: int, raw: bytes, plain: dict[str, Any], at: int) -> JournalLine:
    return JournalLine(segment, number, offset, raw, plain, sha256(raw).hexdigest(), flaw="bit", flaw_at=offset + at)


def _joined(
    segment: int, number: int, offset: int, raw: bytes, following: tuple[int, bytes, bool]
) -> JournalLine | None:
    """One line of which a bit became a line's end."""
    for bit in ONE_BIT:
        right = raw + bytes([LF ^ bit]) + following[1]
        if (plain := plain_of(right)) is not None:
            return _repaired(segment, number, offset, right, plain, len(raw))
    return None


def _parts(segment: int, number: int, offset: int, raw: bytes, ended: bool) -> Iterator[JournalLine]:
    """Lines whose LF between them has changed; or the one line that nobody can read."""
    for match in SEAL.finditer(raw):
        after = match.end()
        if after < len(raw) and raw[after] ^ LF in ONE_BIT and (plain := plain_of(raw[:after])) is not None:
            yield _repaired(segment, number, offset, raw[:after], plain, after)
            rest = raw[after + 1 :]
            whole = _whole(segment, number + 1, offset + after + 1, rest, ended)
            yield whole or _unread(segment, number + 1, offset + after + 1, rest, ended)
            return
    yield _unread(segment, number, offset, raw, ended)


def _unread(segment: int, number: int, offset: int, raw: bytes, ended: bool) -> JournalLine:
    flaw = "cut" if not ended else ("zeros" if ZEROS in raw else "bytes")
    at = {"cut": len(raw), "zeros": raw.find(ZEROS), "bytes": 0}[flaw]
    return JournalLine(segment, number, offset, raw, None, flaw=flaw, flaw_at=offset + at, ended=ended)


def plain_of(raw: bytes) -> dict[str, Any] | None:
    """The line that these bytes hold, if they are one."""
    try:
        return unseal(raw)
    except (ValueError, RecursionError):
        return None


def changed_bit(raw: bytes) -> tuple[int, int] | None:
    """The index of the byte and the bit of it without whose change the checksum would match; None if it is not one."""
    text = raw[:-SEAL_BYTES] + b"}"
    seal, start = b',"crc":"%08x"}' % zlib.crc32(text), len(raw) - SEAL_BYTES
    differing = [at for at in range(start, len(raw)) if raw[at] != seal[at - start]] if start > 0 else []
    if len(differing) == 1:
        changed = raw[differing[0]] ^ seal[differing[0] - start]
        return (differing[0], changed) if changed in ONE_BIT else None
    match = SEAL.fullmatch(raw[-SEAL_BYTES:])
    if match is None or len(text) > MAX_REPAIRED_BYTES:
        return None
    places = _places(1 << (len(text) - 1).bit_length())
    distance, bit = places.get(int(match[1], 16) ^ zlib.crc32(text), (0, 0))
    # The last byte of the text is the brace, which lies behind the checksum.
    return (len(text) - 1 - distance, bit) if 0 < distance < len(text) else None


_known_places = dict[int, dict[int, tuple[int, int]]]()


def _places(size_bytes: int) -> dict[int, tuple[int, int]]:
    """For a text of up to `size_bytes`: the difference of checksums, and what makes it (distance from the end, bit)."""
    if size_bytes not in _known_places:
        places = dict[int, tuple[int, int]]()
        differences = [(CRC_TABLE[bit], bit) for bit in ONE_BIT]
        for distance in range(size_bytes):
            for difference, bit in differences:
                places[difference] = (distance, bit)
            differences = [(CRC_TABLE[change & 0xFF] ^ (change >> 8), bit) for change, bit in differences]
        _known_places[size_bytes] = places
    return _known_places[size_bytes]
