"""Invariants after any number of kills: comparison of the journal with the responses to its clients."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from benchmarks.kills.clients import JournalWatcher, LoadClient, LoadOperator
from benchmarks.kills.rank import Rank, dump
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, TermStarted
from control_plane.core.model.state import fold
from control_plane.storage.checkpoint.manifest import MANIFEST
from control_plane.storage.journal.writer import read


@dataclass
class Findings:
    """Counts of one round, or of many. `problems` has a sentence for each violation."""

    acknowledged: int = 0
    refused: int = 0
    applied: int = 0
    entries: int = 0
    lost: int = 0
    twice: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Add the counts of another round."""
        for name in ("acknowledged", "refused", "applied", "entries", "lost", "twice"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems += other.problems


def judge(root: Path, clients: Sequence[LoadClient]) -> Findings:
    """Compare one run's journal with its clients."""
    verdict = Findings(problems=[problem for client in clients for problem in client.problems])
    if words := unexpected_errors(root):
        verdict.problems.append(f"a control server had an unexpected error: {words}")
    try:
        entries = read(root / "journal")
    except SteerwayError as error:
        verdict.problems.append(f"the journal cannot be read: {error.reason}")
        return verdict
    verdict.entries = len(entries)
    _in_order(entries, verdict)
    for client in clients:
        if isinstance(client, LoadOperator):
            _promised(client, entries, verdict)
        elif isinstance(client, JournalWatcher):
            _seen(client, entries, verdict)
        elif isinstance(client, Rank):
            _settled(client, entries, verdict)
    if gone := removed_undecided(root, entries):
        verdict.lost += len(gone)
        verdict.problems.append(f"removed without a record of it: {', '.join(gone)}")
    return verdict


def unexpected_errors(root: Path) -> str:
    """Return the end of the control servers' unexpected errors."""
    surprises = root / "surprises"
    return surprises.read_text()[-600:] if surprises.exists() else ""


def _accepted(entries: Sequence[Entry]) -> dict[UUID, int]:
    return {entry.record.command.uuid: entry.seq for entry in entries if isinstance(entry.record, CommandAccepted)}


def _repeated(uuids: Iterable[UUID]) -> list[UUID]:
    return [uuid for uuid, count in Counter(uuids).items() if count > 1]


def _in_order(entries: Sequence[Entry], verdict: Findings) -> None:
    if [entry.seq for entry in entries] != list(range(1, len(entries) + 1)):
        verdict.problems.append("the entries are not numbered from 1 without gaps")
    terms = [entry.record.term for entry in entries if isinstance(entry.record, TermStarted)]
    if any(later <= earlier for earlier, later in pairwise(terms)):
        verdict.problems.append(f"the terms do not grow: {terms}")
    accepted = [entry.record.command.uuid for entry in entries if isinstance(entry.record, CommandAccepted)]
    settled = [entry.record.uuid for entry in entries if isinstance(entry.record, CommandSettled)]
    for what, uuids in (("accepted", accepted), ("settled", settled)):
        for uuid in _repeated(uuids):
            verdict.twice += 1
            verdict.problems.append(f"{uuid} was {what} twice")


def _promised(operator: LoadOperator, entries: Sequence[Entry], verdict: Findings) -> None:
    """Check that acknowledged commands are in the journal at the seq of the receipt, and refused ones are not."""
    accepted = _accepted(entries)
    for uuid, seq in operator.acknowledged.items():
        if accepted.get(uuid) != seq:
            verdict.lost += 1
            verdict.problems.append(
                f"{uuid} was acknowledged as entry {seq}, but the journal has it at {accepted.get(uuid)}"
            )
    verdict.problems += [f"{uuid} was refused, but is in the journal" for uuid in operator.refused if uuid in accepted]
    verdict.acknowledged += len(operator.acknowledged)
    verdict.refused += len(operator.refused)


def _seen(watcher: JournalWatcher, entries: Sequence[Entry], verdict: Findings) -> None:
    """Check that entries that were visible are durable."""
    for told, entry in zip(watcher.seen, entries, strict=False):
        if told != dump(entry):
            verdict.problems.append(f"entry {entry.seq} was seen as another: {told}")
            return
    if len(watcher.seen) > len(entries):
        verdict.problems.append(f"entries up to {len(watcher.seen)} were seen; there are {len(entries)}")


def _settled(rank: Rank, entries: Sequence[Entry], verdict: Findings) -> None:
    """Check that each command has one outcome, that of the ranks, and that they applied commands in order."""
    accepted = _accepted(entries)
    ends = {entry.record.uuid: entry.record for entry in entries if isinstance(entry.record, CommandSettled)}
    order = [accepted.get(uuid, 0) for uuid in rank.ledger]
    if 0 in order:
        verdict.lost += order.count(0)
        verdict.problems.append("the ranks applied commands that are not in the journal")
    if order != sorted(order):
        verdict.problems.append("the ranks were offered commands out of their order")
    verdict.twice += len(rank.offered_again)
    verdict.problems += [f"{uuid} was offered after it was settled" for uuid in rank.offered_again]
    verdict.problems += [f"{uuid} was not settled" for uuid in accepted if uuid not in ends]
    for uuid, outcome in rank.ledger.items():
        if uuid in ends and ends[uuid] != outcome:
            verdict.problems.append(f"{uuid} has another outcome than the ranks reported")
    verdict.applied += len(rank.ledger)


def removed_undecided(root: Path, entries: Sequence[Entry]) -> list[str]:
    """Return the checkpoints that the journal offers for a restore, but that have no manifest any more."""
    try:
        offered = fold(list(entries)).checkpoints.existing
    except (KeyError, ValueError):  # contradicting records, which are reported by their uuids
        return []
    return [each.checkpoint for each in offered if not (root / each.path / MANIFEST).exists()]
