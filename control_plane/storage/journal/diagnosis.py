"""Diagnosis of a damaged journal: finds every damaged, missing or misplaced line.

The strict reader (`segments.verify`) stops at the first error. This one continues: it parses every readable line, sorts
them into the order of writing (each line states its number and its predecessor's hash), and reports the differences
between that order and the files. It makes no guesses about unreadable lines.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import Entry
from control_plane.storage.journal.lines import JournalLine, parse_lines
from control_plane.storage.journal.segments import READABLE_VERSIONS, list_segments, segment_name
from control_plane.storage.regular import read_regular

What = Literal[
    "truncated",
    "changed bytes",
    "edited",
    "reordered",
    "duplicated",
    "foreign line",
    "missing lines",
    "missing segment",
    "unknown record",
    "contradiction",
    "not as noted",
    "damaged",
]


class Finding(Message):
    """One kind of damage at one place. `seq` is the first record that cannot be trusted because of it."""

    what: What
    said: str
    file: str | None = None
    line: int | None = None
    offset: int | None = None
    seq: int | None = None


@dataclass(slots=True)
class Known:
    """A readable line, and its number in the order of writing: a header has its predecessor's."""

    piece: JournalLine
    seq: int
    at: int

    @property
    def key(self) -> tuple[int, int, int]:
        """Return the sort key of the order of writing."""
        return self.seq, self.piece.is_header, _term(self.piece) if self.piece.is_header else 0


class PlacedLine(NamedTuple):
    """A verified line and its number: a record's own, or for a header that of the record before it."""

    piece: JournalLine
    seq: int


@dataclass(slots=True)
class Diagnosis:
    """State of a diagnosis: the honoured lines in file order, and the findings about them."""

    pieces: list[JournalLine]
    findings: list[Finding] = field(default_factory=list)
    # Indices in `pieces` of damaged or misplaced lines.
    flawed: set[int] = field(default_factory=set)
    # Indices of unreadable lines where nothing is missing: they were inserted.
    added: set[int] = field(default_factory=set)

    def add(self, what: What, at: int, seq: int, said: str, offset: int | None = None) -> None:
        """Add a finding about the line at index `at`."""
        piece = self.pieces[at]
        where = piece.offset if offset is None else offset
        said = f"{piece.where()}, byte {where}: {said}"
        self.findings.append(
            Finding(what=what, said=said, file=piece.file, line=piece.number, offset=where, seq=max(seq, 1))
        )
        self.flawed.add(at)


def diagnose(directory: Path) -> tuple[list[Finding], list[PlacedLine]]:
    """Return all damage of the segments in a folder, ordered by record, and the trusted lines. Changes nothing."""
    files = {number: read_regular(directory / segment_name(number)) for number in list_segments(directory)}
    read = {number: parse_lines(number, data) for number, data in files.items()}
    headers = {_term(piece): piece for piece in itertools.chain(*read.values()) if piece.is_header}
    diagnosis = Diagnosis(*_honoured(read, headers))
    _name_headers(diagnosis, read, headers)
    known = _name_strays(diagnosis, _without_copies(diagnosis, _known(diagnosis)))
    _name_displaced(diagnosis, known)
    _name_breaks(diagnosis, known)
    _name_flaws(diagnosis, known)
    findings = sorted(diagnosis.findings, key=lambda one: (one.seq or 0, one.file or "", one.line or 0))
    sound = min((finding.seq or 1 for finding in findings), default=len(diagnosis.pieces) + 1)
    return findings, [place for place in follow(diagnosis.pieces) if place.seq < sound]


def _term(piece: JournalLine) -> int:
    term = piece.plain.get("term") if piece.plain else None
    return term if isinstance(term, int) else 0


def _pin(header: JournalLine | None) -> tuple[int, int, int] | None:
    after = header.plain.get("after") if header and header.plain else None
    if not isinstance(after, dict):
        return None
    segment, size_bytes, seq = (after.get(key) for key in ("segment", "size_bytes", "seq"))
    if isinstance(segment, int) and isinstance(size_bytes, int) and isinstance(seq, int):
        return segment, size_bytes, seq
    return None


def _honoured(
    read: dict[int, list[JournalLine]], headers: dict[int, JournalLine]
) -> tuple[list[JournalLine], list[Finding]]:
    """Return the lines of the honoured segments, as far as known, and findings on missing segments."""
    numbers = [number for number, pieces in read.items() if pieces]
    chosen, findings = list[list[JournalLine]](), list[Finding]()
    number, pin = (max(numbers), None) if numbers else (0, None)
    if len(numbers) > 1 and number not in headers and all(piece.plain is None for piece in read[number]):
        number = sorted(numbers)[-2]  # the newest segment was not completed
    while number:
        chosen.append(_within(read.get(number, []), pin))
        if not chosen[-1]:
            findings.append(_gone(number, number in read, pin))
        pin = _pin(headers.get(number))
        older = max((other for other in numbers if other < number), default=0)
        # Without a header the predecessor is unknown: assume the next older one.
        number = older if pin is None or pin[0] >= number else pin[0]
    pieces = list(itertools.chain(*reversed(chosen)))
    return pieces, [finding.model_copy(update={"seq": _first_missing(finding, pieces)}) for finding in findings]


def _gone(number: int, is_there: bool, pin: tuple[int, int, int] | None) -> Finding:
    records = f", with its records up to {pin[2]}" if pin else ""
    name = segment_name(number)
    if is_there:
        return Finding(what="truncated", said=f"{name} is empty{records}", file=name, offset=0)
    return Finding(what="missing segment", said=f"{name} is missing{records}", file=name)


def _first_missing(finding: Finding, pieces: list[JournalLine]) -> int:
    return max((_stated(piece) for piece in pieces if piece.file < (finding.file or "")), default=0) + 1


def _within(pieces: list[JournalLine], pin: tuple[int, int, int] | None) -> list[JournalLine]:
    """Return the lines up to the pin of the next segment's header; readers ignore what follows."""
    kept = list(pieces)
    while pin and kept and kept[-1].offset >= pin[1] and (kept[-1].plain is None or _stated(kept[-1]) > pin[2]):
        kept.pop()
    return kept


def _stated(piece: JournalLine) -> int:
    """Return the number that a line states; for a header, the one that it pins."""
    if piece.is_header:
        pin = _pin(piece)
        return pin[2] if pin else 0
    seq = piece.plain.get("seq") if piece.plain else None
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else 0


def _name_headers(diagnosis: Diagnosis, read: dict[int, list[JournalLine]], headers: dict[int, JournalLine]) -> None:
    """Report segments without a header, or with a header of an unknown version."""
    for at, piece in enumerate(diagnosis.pieces):
        first = piece is read[piece.segment][0]
        if first and piece.plain is not None and piece.segment not in headers:
            diagnosis.add("missing lines", at, _stated(piece), f"the header of {piece.file} is missing")
            diagnosis.flawed.discard(at)
        if piece.is_header and piece.plain and piece.plain.get("version") not in READABLE_VERSIONS:
            version = piece.plain.get("version")
            readable = " and ".join(map(str, READABLE_VERSIONS))
            said = f"it has format version {version!r}; this release reads {readable}"
            diagnosis.add("unknown record", at, _stated(piece) + 1, said)


def _known(diagnosis: Diagnosis) -> list[Known]:
    """Return the readable lines; each follows the line whose hash it names, whatever number it states."""
    by_digest = {piece.digest: piece for piece in diagnosis.pieces if piece.digest}
    known = list[Known]()
    for at, piece in enumerate(diagnosis.pieces):
        if piece.plain is None:
            continue
        before, seq = by_digest.get(piece.prev), _stated(piece)
        if before is not None and not piece.is_header and seq != _stated(before) + 1:
            seq = _stated(before) + 1
            diagnosis.add(
                "edited", at, seq, f"it states that it is record {_stated(piece)}, but it follows record {seq - 1}"
            )
        if piece.is_header or seq > 0:
            known.append(Known(piece, seq, at))
        else:
            diagnosis.add("foreign line", at, _last_seq(known) + 1, "it is not a journal line")
    return known


def _last_seq(known: Sequence[Known]) -> int:
    return known[-1].seq if known else 0


def _without_copies(diagnosis: Diagnosis, known: list[Known]) -> list[Known]:
    """Report duplicates and return each line once: of equal ones, the one after its predecessor."""
    kept = list[Known]()
    for _, equal in itertools.groupby(sorted(known, key=lambda one: one.piece.digest), lambda one: one.piece.digest):
        copies = list(equal)
        original = next((one for one in copies if _lies_behind_its_predecessor(diagnosis, one)), copies[0])
        kept.append(original)
        for copy in copies:
            if copy is not original:
                name = f"record {copy.seq}" if not copy.piece.is_header else "the header"
                said = f"it is a copy of {name} in {original.piece.where()}"
                diagnosis.add("duplicated", copy.at, copy.seq + copy.piece.is_header, said)
    return sorted(kept, key=lambda one: one.at)


def _lies_behind_its_predecessor(diagnosis: Diagnosis, one: Known) -> bool:
    before: str = diagnosis.pieces[one.at - 1].digest if one.at else "0" * 64
    return bool(before == one.piece.prev)


def _name_strays(diagnosis: Diagnosis, known: list[Known]) -> list[Known]:
    """Report lines that claim the number of another line that is linked better."""
    digests, named = {one.piece.digest for one in known}, {one.piece.prev for one in known}

    def links(one: Known) -> int:
        return (one.piece.prev in digests) + (one.piece.digest in named)

    best = dict[tuple[int, int, int], Known]()
    for one in known:
        if one.key not in best or links(one) > links(best[one.key]):
            best[one.key] = one
    for one in known:
        if best[one.key] is not one:
            said = f"it states that it is record {one.seq}, but that is {best[one.key].piece.where()}"
            diagnosis.add("foreign line", one.at, one.seq, said)
    return [one for one in known if best[one.key] is one]


def _name_displaced(diagnosis: Diagnosis, known: list[Known]) -> None:
    """Report reordered lines: the fewest that would have to be moved to restore the order."""
    staying = {one.at for one in _longest_ascent(known)}
    order = {one.at: place for place, one in enumerate(sorted(known, key=lambda one: one.key))}
    for place, one in enumerate(known):
        if one.at not in staying:
            name = "the header of " + segment_name(_term(one.piece)) if one.piece.is_header else f"record {one.seq}"
            side = "before" if order[one.at] > place else "after"
            diagnosis.add("reordered", one.at, one.seq, f"{name} is out of order: it is {side} its neighbours")


def _longest_ascent(known: list[Known]) -> list[Known]:
    tails, ends, before = list[tuple[int, int, int]](), list[int](), list[int]()
    for place, one in enumerate(known):
        at = bisect_left(tails, one.key)
        before.append(ends[at - 1] if at else -1)
        tails[at : at + 1], ends[at : at + 1] = [one.key], [place]
    ascent, last = list[Known](), ends[-1] if ends else -1
    while last >= 0:
        ascent.append(known[last])
        last = before[last]
    return ascent


def _name_breaks(diagnosis: Diagnosis, known: list[Known]) -> None:
    """Report gaps and broken links of the hash chain, in the order of writing."""
    ordered = sorted(known, key=lambda one: one.key)
    for last, one, following in zip([None, *ordered], ordered, [*ordered[1:], None], strict=False):
        seq, digest = (last.seq, last.piece.digest) if last else (0, "0" * 64)
        gap = one.seq - seq - (not one.piece.is_header)
        unread = _unread_between(diagnosis, last, one)
        if gap > len(unread):
            _name_gap(diagnosis, last, one, gap, len(unread))
        elif one.piece.prev == digest:
            diagnosis.added |= unread
        elif gap <= 0 and not unread and not _header_is_missing(diagnosis, one):
            _name_edit(diagnosis, last, one, following)
        _name_unknown(diagnosis, one)


def _unread_between(diagnosis: Diagnosis, last: Known | None, one: Known) -> set[int]:
    start, stop = sorted((last.at if last else -1, one.at))
    return {at for at in range(start + 1, stop) if diagnosis.pieces[at].plain is None}


def _header_is_missing(diagnosis: Diagnosis, one: Known) -> bool:
    return any(
        finding.what == "missing lines" and finding.file == one.piece.file and finding.line == one.piece.number
        for finding in diagnosis.findings
    )


def _name_gap(diagnosis: Diagnosis, last: Known | None, one: Known, gap: int, unread: int) -> None:
    files = {finding.file for finding in diagnosis.findings if finding.line is None}
    if any(file is not None and file <= one.piece.file for file in files):
        return  # a missing segment is reported already
    first = (last.seq if last else 0) + 1
    missing = f"record {first} is" if gap == 1 else f"records {first} to {first + gap - 1} are"
    pin = _pin(one.piece) if one.piece.is_header else None
    behind = [at for at, piece in enumerate(diagnosis.pieces) if pin and piece.segment == pin[0]]
    if behind and pin and diagnosis.pieces[behind[-1]].flaw in (None, "cut"):
        _name_truncation(diagnosis, behind[-1], first, f"{missing} missing at its end", one.piece.file, pin[1])
    else:
        said = f"{missing} missing before it" + (f", or among {unread} unreadable lines" if unread else "")
        diagnosis.add("missing lines", one.at, first, said)
        diagnosis.flawed.discard(one.at)


def _name_truncation(diagnosis: Diagnosis, at: int, first: int, said: str, by: str, size_bytes: int) -> None:
    piece = diagnosis.pieces[at]
    end = piece.offset + len(piece.raw) + piece.ended
    diagnosis.add("truncated", at, first, f"{said}; {by} continues after byte {size_bytes} of it", offset=end)
    if piece.plain is not None:
        diagnosis.flawed.discard(at)


def _name_edit(diagnosis: Diagnosis, last: Known | None, one: Known, following: Known | None) -> None:
    """Report an edited line: `one` follows `last` directly but does not name its hash, so one of the two was edited."""
    followed = following is not None and following.piece.prev == one.piece.digest
    suspect = last if last is not None and (followed or following is None) else one
    if {one.at, last.at if last else -1} & diagnosis.flawed:
        return
    name = f"record {suspect.seq}" if not suspect.piece.is_header else "the header"
    if suspect is one:
        said = f"{name} was edited and its checksum recomputed: it does not name the hash of the line before"
    else:
        sure = "" if following is not None else f" (or {one.piece.where()} was)"
        said = f"{name} was edited and its checksum recomputed{sure}: the next line names another hash"
    diagnosis.add("edited", suspect.at, suspect.seq + suspect.piece.is_header, said)


def _name_unknown(diagnosis: Diagnosis, one: Known) -> None:
    if one.piece.is_header or one.at in diagnosis.flawed or one.piece.plain is None:
        return
    try:
        Entry.from_line(one.piece.plain)
    except (ValueError, KeyError, TypeError):
        kind = str(one.piece.plain.get("type"))[:40]
        said = f"record {one.seq} has a type ({kind!r}) or content that this release does not know"
        diagnosis.add("unknown record", one.at, one.seq, said)


def _name_flaws(diagnosis: Diagnosis, known: list[Known]) -> None:
    """Report lines whose bytes differ from what was written."""
    seqs = {one.at: one for one in known}
    named = {(finding.file, finding.line) for finding in diagnosis.findings if finding.what == "truncated"}
    for at, piece in enumerate(diagnosis.pieces):
        if piece.flaw is None or (piece.flaw == "cut" and (piece.file, piece.number) in named):
            continue
        if at in seqs:
            seq = seqs[at].seq + piece.is_header
        else:
            seq = max((one.seq for one in known if one.at < at), default=0) + 1
        what, said = _flaw(piece) if at not in diagnosis.added else ("foreign line", "it is not a journal line")
        diagnosis.add(what, at, seq, said, offset=piece.flaw_at)


def _flaw(piece: JournalLine) -> tuple[What, str]:
    size_bytes = len(piece.raw)
    match piece.flaw:
        case "cut":
            return "truncated", f"the line ends after {size_bytes} bytes, without a line feed"
        case "zeros":
            return "changed bytes", f"the line's {size_bytes} bytes contain zeros: a sector of the disk was lost"
    return "changed bytes", f"checksum mismatch: the line's {size_bytes} bytes differ from what was written"


def follow(pieces: Sequence[JournalLine]) -> Iterator[PlacedLine]:
    """Yield the intact lines from the start, as long as each follows the one before."""
    seq, digest = 0, "0" * 64
    for piece in pieces:
        if piece.flaw is not None or piece.prev != digest or _stated(piece) != seq + (not piece.is_header):
            return
        seq, digest = _stated(piece), piece.digest
        yield PlacedLine(piece, seq)
