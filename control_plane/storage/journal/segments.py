"""File format of the journal: hash-chained lines, segment headers, and what of them a reader honours.

`000001.jsonl`, `000002.jsonl`, ... hold one JSON object a line, in ASCII, without blanks, ended by LF. A line is
`Entry.line()`, followed by these keys:

    batch   the seq of the first record of the write that this line was part of
    until   the seq of its last record, if it has several: a batch is honoured atomically
    prev    SHA-256 (hex) of the line before, without its LF; 64 zeros for the very first line
    crc     eight hex digits, always the last key: the CRC-32 of the line's bytes with `,"crc":"xxxxxxxx"` taken out

From version 2 on, every line about a command has its `uuid`, `status`, `command` (the intent's kind) and `arguments`;
version 1 had the last two only in the body of the accepted one. Both are read, and may be mixed in one journal.
`docs/journal.md` describes the format for other programs.

Floats are written as `repr` does, so they come back exact. JSON has no NaN and no infinity; readings spell them as
strings (see `records.Reading`), and a float that is not finite anywhere else is rejected before it is written.

The first line of a segment is its header, not a record: `type` "Segment", `version`, `term`, and the pin `after`, how
far the newest older segment is honoured (`segment`, `size_bytes`, `seq`; its last line's hash is the header's `prev`).
A segment between the two is void: its writer died or was fenced before it could confirm anything. A reader follows the
pins back from the newest header, so bytes that a fenced writer adds later are never seen.

The order implements the fencing: a new writer first creates its segment, then reads the older ones, then writes its
pin; an old writer writes, syncs, and then checks for a newer segment. So the new one has read all that was confirmed.

After a crash only the end of the newest segment may be incomplete, and only as one interrupted write leaves it:
truncated, or with zeros for a sector that was not written. That torn tail is ignored (pinned off, never overwritten),
and with it the rest of its batch. Everything else that does not verify is `Damaged`. Not covered: whole lines, or the
whole newest segment, removed by hand from the end.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from control_plane.core.model.errors import Damaged
from control_plane.core.model.records import Entry
from control_plane.storage.journal.command_index import CommandIndex
from control_plane.storage.regular import read_regular

FORMAT_VERSION = 2
"""2: every line about a command has its kind and arguments. Readers of version 1 reject the newer records."""

READABLE_VERSIONS = (1, FORMAT_VERSION)
SEGMENT_NAME = re.compile(r"([0-9]{6,})\.jsonl")
SECTOR_BYTES = 512
"""The unit that a disk writes atomically."""

MAX_HEADER_BYTES = 224
"""Longest possible header (a test fills every field); no header and record together are this short."""

_SEAL_BYTES = len(',"crc":"00000000"}')
_READABLE = " or ".join(map(str, READABLE_VERSIONS))


@dataclass(frozen=True, slots=True)
class Pin:
    """Position in the journal: after the first `size_bytes` of `segment`, whose last line has hash `digest`."""

    segment: int = 0
    size_bytes: int = 0
    seq: int = 0
    digest: str = "0" * 64


def seal(line: dict[str, Any]) -> bytes:
    """Serialize a line canonically, with its checksum, without LF. Raises `ValueError` or `TypeError` if not JSON."""
    text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode("ascii")
    return text[:-1] + b',"crc":"%08x"}' % zlib.crc32(text)


def unseal(raw: bytes) -> dict[str, Any]:
    """Parse a line and verify its checksum. Raises `ValueError` unless the bytes are exactly what `seal` wrote."""
    text = raw[:-_SEAL_BYTES] + b"}"
    if raw != text[:-1] + b',"crc":"%08x"}' % zlib.crc32(text):
        raise ValueError("the checksum does not match")
    try:
        line = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    return line


def _is_sealed(raw: bytes) -> bool:
    try:
        unseal(raw)
    except ValueError:
        return False
    return True


def segment_name(number: int) -> str:
    """Return a segment's file name."""
    return f"{number:06d}.jsonl"


def list_segments(directory: Path) -> list[int]:
    """Return the numbers of the segments, ascending; other files are ignored."""
    return sorted(int(match[1]) for name in os.listdir(directory) if (match := SEGMENT_NAME.fullmatch(name)))


def _torn(data: bytes, start: int, seq: int) -> bool:
    """Return whether one interrupted write, after record `seq`, can have left `data[start:]`. A bit flip cannot.

    No line of a later write may follow: that one was only started after this one had been confirmed.
    """
    tail = data[start:]
    if b"\n" not in tail:
        # A complete line whose LF became another byte is a bit flip, not a truncation.
        return tail.endswith(b"\0") or not _is_sealed(tail[:-1])
    sectors = range(start - start % SECTOR_BYTES, len(data), SECTOR_BYTES)
    zeros = any(not data[max(at, start) : at + SECTOR_BYTES].strip(b"\0") for at in sectors)
    later = [unseal(raw).get("batch", 0) for raw in tail.split(b"\n") if _is_sealed(raw)]
    return (zeros or tail.endswith(b"\0")) and max(later, default=0) <= seq + 1


def _ends_its_write(line: dict[str, Any], seq: int) -> bool:
    until = line.get("until")
    return not isinstance(until, int) or until <= seq


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of one segment, up to where they are honoured."""

    number: int
    data: bytes

    def damaged(self, line: int, what: str) -> Damaged:
        """Return an error that names this file and line."""
        name = segment_name(self.number)
        return Damaged(f"the journal's {name}, line {line}: {what}; nothing was changed", file=name, line=line)

    def is_unborn(self) -> bool:
        """Return whether its writer died before the header was durable, and so confirmed nothing."""
        return len(self.data) <= MAX_HEADER_BYTES and _torn(self.data, 0, 0)

    def header(self) -> tuple[Pin, Pin]:
        """Return the position that the header pins, and the position after the header."""
        raw = self.data[: max(self.data.find(b"\n"), 0)]
        try:
            header = unseal(raw)
            if header["version"] not in READABLE_VERSIONS:
                raise ValueError(f"it is in format {header['version']!r}, and this release reads {_READABLE}")
            if (header["type"], header["term"]) != ("Segment", self.number):
                raise ValueError("it belongs to another segment")
            pin = Pin(**header["after"], digest=header["prev"])
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged(1, f"invalid header: {error}") from error
        if not 0 <= pin.segment < self.number:
            raise self.damaged(1, f"the header follows segment {pin.segment}, which is not older")
        return pin, Pin(self.number, len(raw) + 1, pin.seq, sha256(raw).hexdigest())

    def records(self, may_be_torn: bool) -> tuple[list[Entry], Pin]:
        """Return the records and the position after the last. Raises `Damaged`."""
        entries = list[Entry]()
        _, end = self.header()
        whole = len(entries), end
        while end.size_bytes < len(self.data):
            line_end = self.data.find(b"\n", end.size_bytes)
            raw = self.data[end.size_bytes : line_end] if line_end >= 0 else b""
            try:
                line = unseal(raw)
            except ValueError as error:
                if may_be_torn and _torn(self.data, end.size_bytes, end.seq):
                    break
                what = str(error) if line_end >= 0 else "incomplete line"
                raise self.damaged(len(entries) + 2, what) from error
            entries.append(self._entry(line, end, len(entries) + 2))
            end = Pin(self.number, line_end + 1, end.seq + 1, sha256(raw).hexdigest())
            if _ends_its_write(line, end.seq):
                whole = len(entries), end
        return (entries[: whole[0]], whole[1]) if may_be_torn else (entries, end)

    def _entry(self, line: dict[str, Any], end: Pin, number: int) -> Entry:
        if line.get("prev") != end.digest:
            raise self.damaged(number, "broken hash chain: prev is not the hash of the line before")
        if line.get("seq") != end.seq + 1:
            raise self.damaged(number, f"record {line.get('seq')} cannot follow record {end.seq}")
        try:
            return Entry.from_line(line)
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged(number, f"not a record that this release knows: {error}") from error


def honoured(directory: Path, below: float = math.inf) -> list[Segment]:
    """Return the honoured part of the segments under `below`, oldest first. Verifies only headers."""
    chain = list[Segment]()
    for number in reversed([number for number in list_segments(directory) if number < below]):
        newest = Segment(number, read_regular(directory / segment_name(number)))
        if not newest.is_unborn():
            chain.append(newest)
            break
    while chain and (pin := chain[-1].header()[0]).segment:
        chain.append(_pinned(directory, pin, chain[-1]))
    return chain[::-1]


def verify(segments: Sequence[Segment]) -> tuple[list[Entry], Pin]:
    """Verify segments; return their records and the end position. Raises `Damaged`."""
    entries, end, asked = list[Entry](), Pin(), CommandIndex()
    for segment in segments:
        if segment.header()[0] != end:
            raise segment.damaged(1, f"its pin does not match the history in {segment_name(end.segment)}")
        records, end = segment.records(may_be_torn=segment is segments[-1])
        entries += map(asked.complete, records)
    return entries, end


def load(directory: Path, below: float = math.inf) -> tuple[list[Entry], Pin]:
    """Return all honoured records of the segments under `below`, verified, and the end position."""
    return verify(honoured(directory, below))


def _pinned(directory: Path, pin: Pin, by: Segment) -> Segment:
    path = directory / segment_name(pin.segment)
    if not path.exists():
        raise by.damaged(1, f"it follows {path.name}, which is missing")
    segment = Segment(pin.segment, read_regular(path)[: pin.size_bytes])
    if len(segment.data) < pin.size_bytes:
        raise by.damaged(1, f"it follows {pin.size_bytes} bytes of {path.name}, which has {len(segment.data)}")
    return segment
