"""Audit of a journal: finds all damage and how many records can still be trusted. Changes nothing.

Its verdict agrees with the strict reader: an `intact` journal opens as it is, one with a `torn tail` opens without its
last, interrupted write. One that does not open is `damaged`, and so is one whose lines verify but contradict each
other (a command settled that was never accepted).

Not covered, because the files alone cannot show it: whole lines or segments removed from the end; the very last line
edited with a recomputed checksum; a history rewritten from the edited line on. A head, `SEQ:HASH`, stored elsewhere
detects all of these up to its record.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from control_plane.core.model.errors import Damaged, Invalid, NotFound, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    RunCreated,
    TermStarted,
)
from control_plane.core.model.state import RunState, evolve
from control_plane.storage.journal.command_index import CommandIndex
from control_plane.storage.journal.diagnosis import Finding, PlacedLine, diagnose, follow
from control_plane.storage.journal.lines import parse_lines
from control_plane.storage.journal.segments import Segment, honoured, list_segments, segment_name, verify
from control_plane.storage.regular import read_regular

Verdict = Literal["intact", "torn tail", "damaged"]

HEAD = re.compile(r"([0-9]{1,16}):([0-9a-f]{16,64})")
SAID_BESIDE = ("uuid", "status", "command", "arguments", "author")
"""Fields of a line that repeat its body and must agree with it."""


class Head(Message):
    """A record's number and the SHA-256 of its line; the hash chain covers every line before it."""

    seq: int = Field(ge=0)
    hash: str = ""

    def __str__(self) -> str:
        """Return `SEQ:HASH`."""
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Parse `SEQ:HASH`; the first 16 digits of the hash are enough. Raises `Invalid`."""
        match = HEAD.fullmatch(text.strip())
        if match is None:
            raise Invalid(
                f"{text[:100]!r} is not SEQ:HASH: expected a record number, a colon, and at least the first 16 "
                "hexadecimal digits of its hash, as `steer journal audit` prints them"
            )
        return cls(seq=int(match[1]), hash=match[2])


class Audit(Message):
    """MetricSummary of an audit. `run`: the run that the journal names; `head`: the last record that can be trusted."""

    verdict: Verdict
    run: str = ""
    records: int
    segments: int
    head: Head
    findings: tuple[Finding, ...] = ()
    torn: str | None = None
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return the verdict as a sentence."""
        size = f"{self.records} records in {self.segments} segments"
        if self.verdict == "intact":
            return f"the journal is intact: {size}"
        if self.verdict == "torn tail":
            return f"the journal has a torn tail: {size}; {self.torn}"
        first = self.findings[0].said
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        trusted = f"records 1 to {self.head.seq} can be trusted" if self.head.seq else "no record can be trusted"
        return f"the journal is damaged: {first}{more}; {trusted}"


def audit(directory: Path, expect: Head | None = None) -> Audit:
    """Audit the journal in a folder. `expect`: a head from an earlier audit to compare with.

    Raises `NotFound` without such a folder, `Unavailable` if a file cannot be read.
    """
    if not directory.is_dir():
        raise NotFound("this run has no journal")
    try:
        result, places = _audited(directory)
    except OSError as error:
        raise Unavailable(f"the journal could not be read: {error.strerror or error}", errno=error.errno) from error
    return result if expect is None else _compared(result, places, expect)


def _audited(directory: Path) -> tuple[Audit, list[PlacedLine]]:
    numbers = list_segments(directory)
    if not numbers:
        none = Finding(what="missing segment", said="the journal's folder contains no segment", seq=1)
        return Audit(verdict="damaged", records=0, segments=0, head=Head(seq=0), findings=(none,)), []
    try:
        segments = honoured(directory)
        entries, end = verify(segments)
    except Damaged as error:
        return _damaged(directory, error)
    places = [place for segment in segments for place in _places(segment, end.size_bytes, segments[-1])]
    places = list(follow([place.piece for place in places]))
    torn, notes = _torn(numbers, segments, end.size_bytes), _notes(directory, numbers, segments)
    wrong = tuple(_contradictions(places))
    sound = min((finding.seq or 1 for finding in wrong), default=len(entries) + 1)
    return (
        Audit(
            verdict="damaged" if wrong else "torn tail" if torn else "intact",
            run=_run(places),
            records=len(entries),
            segments=len(segments),
            head=_head([place for place in places if place.seq < sound]),
            findings=wrong,
            torn=torn,
            notes=notes,
        ),
        places,
    )


def _places(segment: Segment, end_bytes: int, newest: Segment) -> list[PlacedLine]:
    data = segment.data[:end_bytes] if segment is newest else segment.data
    return [PlacedLine(piece, 0) for piece in parse_lines(segment.number, data)]


def _damaged(directory: Path, error: Damaged) -> tuple[Audit, list[PlacedLine]]:
    findings, places = diagnose(directory)
    if not findings:
        findings = [_finding_of(error, places)]
        places = [place for place in places if place.seq < (findings[0].seq or 1)]
    segments = {place.piece.segment for place in places}
    records = sum(not place.piece.is_header for place in places)
    wrong = (*findings, *_contradictions(places))
    return (
        Audit(
            verdict="damaged",
            run=_run(places),
            records=records,
            segments=len(segments),
            head=_head(places),
            findings=wrong,
        ),
        places,
    )


def _finding_of(error: Damaged, places: Sequence[PlacedLine]) -> Finding:
    file, line = error.detail.get("file"), error.detail.get("line")
    before = [place.seq for place in places if (place.piece.file, place.piece.number) < (str(file), int(str(line)))]
    return Finding(
        what="damaged", said=error.reason, file=str(file), line=int(str(line)), seq=max(before, default=0) + 1
    )


def _run(places: Sequence[PlacedLine]) -> str:
    created = (place.piece.plain or {} for place in places if place.seq == 1 and not place.piece.is_header)
    body = next(created, {}).get("body")
    return str(body.get("run", "")) if isinstance(body, dict) else ""


def _head(places: Sequence[PlacedLine]) -> Head:
    records = [place for place in places if not place.piece.is_header]
    return Head(seq=records[-1].seq, hash=records[-1].piece.digest) if records else Head(seq=0)


def _torn(numbers: Sequence[int], segments: Sequence[Segment], end_bytes: int) -> str | None:
    """Return what an interrupted write left at the end, as a sentence, or None."""
    newest = segments[-1].number if segments else 0
    unborn = [number for number in numbers if number > newest]
    if unborn:
        return (
            f"the header of {segment_name(unborn[-1])} is incomplete; its writer confirmed nothing, and the next "
            "writer ignores it"
        )
    left = len(segments[-1].data) - end_bytes if segments else 0
    return (
        f"the last write is incomplete: {left} bytes of {segment_name(newest)} from byte {end_bytes} on were never "
        "confirmed (or are being written right now); the next writer ignores them"
        if left
        else None
    )


def _notes(directory: Path, numbers: Sequence[int], segments: Sequence[Segment]) -> tuple[str, ...]:
    """Return notes on content that readers ignore and that is not damage."""
    used = {segment.number: segment for segment in segments}
    newest = max(used, default=0)
    notes = [
        f"{segment_name(number)} is void: its writer was fenced before it confirmed anything"
        for number in numbers
        if number not in used and number < newest
    ]
    for number, segment in used.items():
        more = read_regular(directory / segment_name(number))[len(segment.data) :] if number != newest else b""
        if more:
            known = any(raw and raw in segment.data for raw in more.split(b"\n"))
            copy = " (including a copy of a line)" if known else ""
            notes.append(
                f"{len(more)} bytes at the end of {segment_name(number)} were not confirmed{copy}; readers ignore them"
            )
    strange = sorted(path.name for path in directory.iterdir() if path.name not in map(segment_name, numbers))
    return (*notes, *(f"{name[:80]!r} is not a journal file and is ignored" for name in strange))


def _compared(result: Audit, places: Sequence[PlacedLine], expect: Head) -> Audit:
    """Compare an audit with an earlier head; a difference is a finding."""
    hashes = {place.seq: place.piece.digest for place in places if not place.piece.is_header}
    if expect.seq == 0 or hashes.get(expect.seq, "").startswith(expect.hash):
        return result
    if expect.seq in hashes:
        said = f"record {expect.seq} differs from the expected head: the history up to it was rewritten"
        wrong, head = Finding(what="not as noted", said=said, seq=1), Head(seq=0)
    elif result.verdict == "damaged" and expect.seq > result.head.seq:
        return result  # the expected record is untrusted already
    else:
        said = f"the journal ends at record {result.head.seq}, but record {expect.seq} is expected: its end was removed"
        wrong, head = Finding(what="not as noted", said=said, seq=result.head.seq + 1), result.head
    return result.model_copy(update={"verdict": "damaged", "findings": (*result.findings, wrong), "head": head})


def _contradictions(places: Sequence[PlacedLine]) -> Iterator[Finding]:
    """Yield contradictions between records whose lines all verify."""
    state, asked, version = RunState(), CommandIndex(), 1
    for piece, seq in places:
        line = piece.plain or {}
        if piece.is_header:
            version = line.get("version", 1)
            continue
        try:
            entry = Entry.from_line(line)
        except (ValueError, TypeError):
            return  # reported elsewhere; later records cannot be interpreted
        reason = impossible(state, entry) or _disagreement(line, entry, asked, version)
        try:
            evolve(state, entry)
        except (KeyError, IndexError, ValueError):
            reason = reason or f"a {entry.record.type} cannot follow the records before it"
        state.seq = entry.seq
        if reason:
            said = f"{piece.where()}, byte {piece.offset}: record {seq} contradicts the records before it: {reason}"
            yield Finding(
                what="contradiction", said=said, file=piece.file, line=piece.number, offset=piece.offset, seq=seq
            )


def impossible(state: RunState, entry: Entry) -> str | None:
    """Return why a record cannot follow that state, or None."""
    record = entry.record
    match record:
        case RunCreated() if state.seq:
            return "the run is created twice"
        case _ if not state.seq and not isinstance(record, RunCreated):
            return f"a journal must begin with RunCreated, not {record.type}"
        case TermStarted() if record.term <= state.term:
            return f"term {record.term} begins after term {state.term}"
        case GenerationStarted() if record.generation <= state.generation_number:
            return f"generation {record.generation} begins after generation {state.generation_number}"
        case GenerationLost() if record.generation > state.generation_number:
            return f"generation {record.generation} fails before it begins"
        case GenerationRecovered() if not state.failures:
            return "a recovery without a failure"
        case CommandAccepted() if record.command.uuid in state.commands:
            return f"command {record.command.uuid} is accepted twice"
        case CommandScheduled() if record.uuid not in state.commands:
            return f"command {record.uuid} was never accepted"
        case CommandSettled() | CommandRepeated():
            return _impossible_end(state, record)
        case BranchStarted() | BranchResumed() | BranchAdopted():
            return _impossible_turn(state, record)
    return None


def _impossible_turn(state: RunState, record: BranchStarted | BranchResumed | BranchAdopted) -> str | None:
    if isinstance(record, BranchResumed):
        return None if record.branch in state.tree.branches else f"branch {record.branch} to resume does not exist"
    if record.branch in state.tree.branches:
        return f"branch {record.branch} is created twice"
    if isinstance(record, BranchAdopted):
        return None
    return None if record.parent in state.tree.branches else f"parent branch {record.parent} does not exist"


def _impossible_end(state: RunState, record: CommandSettled | CommandRepeated) -> str | None:
    life = state.commands.get(record.uuid)
    if life is None:
        return f"command {record.uuid} was never accepted"
    if isinstance(record, CommandRepeated):
        return None if life.settled else f"command {record.uuid} is repeated before it was settled"
    return f"command {record.uuid} was already settled in record {life.settled_seq}" if life.settled else None


def _disagreement(line: dict[str, Any], entry: Entry, asked: CommandIndex, version: int) -> str | None:
    """Return which field disagrees with the record's body, or with the command as it was accepted, or None."""
    plain = asked.complete(entry.model_copy(update={"about": None})).line()
    for key in SAID_BESIDE:
        if key in line and key not in plain and key in ("command", "arguments"):
            continue  # about an unknown command, which is reported elsewhere
        if key in line and not _agrees(line[key], plain.get(key)):
            return f"its {key} is {str(line[key])[:60]!r}, but {str(plain.get(key))[:60]!r} by its body or command"
        if key not in line and key in plain and version > 1:
            return f"it lacks its {key}"
    return None


def _agrees(said: Any, known: Any) -> bool:
    """Return whether `known` contains all of `said`; a later release may add fields to an intent."""
    if isinstance(said, dict) and isinstance(known, dict):
        return all(key in known and _agrees(value, known[key]) for key, value in said.items())
    if isinstance(said, list) and isinstance(known, list):
        return len(said) == len(known) and all(map(_agrees, said, known))
    return bool(said == known)
