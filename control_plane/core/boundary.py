"""The step boundary: the protocol by which all ranks apply commands, as a generator of effects.

The generator yields an effect and is sent its result. On a cluster torch.distributed executes the effects; in a
simulation a loop over thousands of replicas does. All ranks run the same code and must yield the same sequence of
collective effects, so no `yield` depends on the rank: every branch is taken on the result of a collective.

    TakeOffers -> Broadcast -> for each command: Check, AllReduceMin (the vote), Apply, AllGather (the readings)

A quiet boundary is one `Broadcast` of nothing, and, now and then, a comparison of the knobs. A driver may start that
broadcast before the step and await it after.

Covered: a rank that cannot (none does), a rank that failed to (all undo), a reading that differs (all undo), a stale
or repeated offer (the ledger). Not covered: a rank that dies inside a collective; the collective's timeout ends it.
"""

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from control_plane.core.model.commands import Command, Pause, Resume, Stop
from control_plane.core.model.errors import Diverged
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.records import MAX_RANKS_LISTED, CommandSettled, Readback

MAX_COMMANDS_PER_PROPOSAL = 16
"""Bounds the duration of one boundary; the rest waits for the next step."""

COMPARE_EVERY_STEPS = 25
"""Steps between comparisons of all ranks' knobs, with or without a command: two small collectives."""

PAUSE_POLL_S = 0.1
"""How often a paused run looks for commands: fast enough for a person, slow enough to leave the cores alone."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One rank's success, with its readback before and after. Both are read from live objects, never assumed."""

    before: Readback
    after: Readback


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's failure, as a sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class TakeOffers:
    """Local. Rank 0 answers with the unsettled commands it was offered, every other rank with none."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Collective. Every rank is sent what rank 0 proposed."""

    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Local, without side effects. Answers None if this rank can apply the command, else the reason."""

    command: Command


@dataclass(frozen=True, slots=True)
class AllReduceMin:
    """Collective. The least value that any rank gave."""

    value: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Local (or a collective of its own, such as an evaluation). Answers `Applied` or `Failure`; never raises."""

    command: Command
    step: int


@dataclass(frozen=True, slots=True)
class Undo:
    """Local. Reverts the last `Apply` of this command. Answers None, or the reason why it failed."""

    command: Command


@dataclass(frozen=True, slots=True)
class ReadKnobs:
    """Local. Answers the live value of every knob of this rank."""


@dataclass(frozen=True, slots=True)
class AllGather:
    """Collective. Every rank is sent the list of all ranks' values, in rank order."""

    value: Any


@dataclass(frozen=True, slots=True)
class Wait:
    """Local. Let `wait_s` seconds pass; every rank waits alike."""

    wait_s: float


Effect = TakeOffers | Broadcast | Check | AllReduceMin | Apply | Undo | ReadKnobs | AllGather | Wait
Steps = Generator[Effect, Any, None]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A command to apply again at the boundary after `step`, where it took effect before a failure."""

    command: Command
    step: int


@dataclass(slots=True)
class Replica:
    """Replicated state of one rank, carried from one boundary to the next.

    The ledger holds *decisions*, not only effects: a rejected command stays rejected when a stale offer brings it
    back. Invariant: ledgers and remaining repeats are equal on all ranks after every boundary.
    """

    generation: int
    paused: bool = False
    stopping: bool = False
    ledger: dict[UUID, CommandSettled] = field(default_factory=dict)
    repeats: tuple[Repeat, ...] = ()
    # The repeats are another run's history, which nobody may change; only a stop is accepted meanwhile.
    replays: bool = False
    # The command that takes the run to another branch: after it these trainers decide nothing more.
    leaving: Command | None = None

    def decide(self, command: Command, outcome: CommandSettled) -> None:
        """Enter the decision about a proposed command into the ledger."""
        self.ledger[command.uuid] = outcome
        self.repeats = tuple(each for each in self.repeats if each.command.uuid != command.uuid)
        if outcome.status != "applied":
            return
        if isinstance(command.intent, Pause | Resume | Stop):
            self.paused = isinstance(command.intent, Pause)
            self.stopping = self.stopping or isinstance(command.intent, Stop)
        if isinstance(command.intent, Rollback):
            self.leaving = command

    def decided_at(self, step: int) -> tuple[UUID, ...]:
        """Return the commands decided at the boundary after `step`, by earlier generations too, see `branches.Cut`."""
        return tuple(uuid for uuid, each in self.ledger.items() if each.step == step)

    def repeating(self, command: Command) -> bool:
        """Return whether this command is among the repeats."""
        return any(each.command.uuid == command.uuid for each in self.repeats)

    def is_behind(self, step: int) -> bool:
        """Return whether repeats are left for the boundary after `step`."""
        return any(each.step <= step for each in self.repeats)


def boundary(replica: Replica, step: int) -> Steps:
    """Run the boundary after optimizer step `step`. Returns when the next step may begin.

    While the run is paused the boundary polls for commands every `PAUSE_POLL_S`.
    Raises `Diverged` if the ranks could not be brought back to agreement.
    """
    while True:
        offers: tuple[Command, ...] = yield TakeOffers()
        proposal: tuple[Command, ...] = yield Broadcast(propose(replica, offers, step))
        for command in proposal:
            outcome = yield from _settle(replica, command, step)
            replica.decide(command, outcome)
            if replica.leaving is not None:
                return  # the rest is for the trainers of the other branch
        if replica.is_behind(step):
            continue
        if not replica.paused or replica.stopping:
            break
        yield Wait(PAUSE_POLL_S)
    if step % COMPARE_EVERY_STEPS == 0:
        yield from _compare_knobs(step)


def _compare_knobs(step: int) -> Steps:
    """Raise `Diverged`, on every rank alike, if a rank's knobs differ from rank 0's."""
    mine: Readback = yield ReadKnobs()
    digests: list[str] = yield AllGather(hashlib.sha256(_canonical(mine).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    readings: list[Readback] = yield AllGather(mine)
    first = readings[0]
    for rank, reading in enumerate(readings):
        for knob in sorted(first.keys() | reading.keys()):
            theirs, ours = reading.get(knob), first.get(knob)
            if _canonical(theirs) != _canonical(ours):
                raise Diverged(
                    f"after step {step} rank {rank} holds {knob} {theirs}, rank 0 holds {ours}",
                    rank=rank,
                    knob=knob,
                    step=step,
                )


def propose(replica: Replica, offers: tuple[Command, ...], step: int) -> tuple[Command, ...]:
    """Return the commands to settle at this boundary, oldest first, each once.

    Until all repeats are applied no new offer is taken: it would be overwritten by commands that are older.
    """
    if replica.repeats:
        again = [each.command for each in replica.repeats if each.step <= step]
        if again or not replica.replays:
            return tuple(again[:MAX_COMMANDS_PER_PROPOSAL])
        offers = tuple(each for each in offers if isinstance(each.intent, Stop | Cancel))
    undecided = {command.uuid: command for command in offers if command.uuid not in replica.ledger}
    due = [command for command in undecided.values() if (command.not_before_step or 0) <= step]
    # A cancel is settled before its target, though it was sent later; an expired cancel takes nothing back.
    taken_back = {
        command.intent.command for command in due if isinstance(command.intent, Cancel) and not _is_late(command, step)
    }
    due = [command for command in due if command.uuid not in taken_back]
    due.sort(key=lambda command: not isinstance(command.intent, Cancel))
    return tuple(due[:MAX_COMMANDS_PER_PROPOSAL])


def _is_late(command: Command, step: int) -> bool:
    return command.not_after_step is not None and step > command.not_after_step


def _settle(replica: Replica, command: Command, step: int) -> Generator[Effect, Any, CommandSettled]:
    if _is_late(command, step):
        reason = f"not_after_step is {command.not_after_step}, and step {step} is done already"
        return _unapplied(replica, command, step, "expired", reason)
    if isinstance(command.intent, Cancel):
        return _cancel(replica, command, command.intent.command, step)
    refusal: str | None = yield Check(command)
    everyone_can = yield AllReduceMin(1 if refusal is None else 0)
    if not everyone_can:
        refusals: list[str | None] = yield AllGather(refusal)
        return _unapplied(replica, command, step, "rejected", _name_ranks(refusals))
    result: Applied | Failure = yield Apply(command, step)
    results: list[Applied | Failure] = yield AllGather(result)
    disagreement = _disagreement(results)
    if disagreement is None:
        return _applied(replica, command, step, cast(list[Applied], results))
    failed_to_undo: str | None = yield Undo(command)
    failures: list[str | None] = yield AllGather(failed_to_undo)
    if any(failure is not None for failure in failures):
        reason = f"{disagreement}; it could not be undone: {_name_ranks(failures)}"
        # Decided all the same: left pending, it would be offered to the next trainers and end them, too.
        replica.decide(command, _unapplied(replica, command, step, "failed", reason))
        raise Diverged(f"'{command.describe()}' at step {step}: {reason}", uuid=str(command.uuid), step=step)
    return _unapplied(replica, command, step, "failed", f"{disagreement}; undone on all ranks")


def _cancel(replica: Replica, command: Command, target: UUID, step: int) -> CommandSettled:
    """Settle the cancel's target unless it is decided. No collective: the ledgers are equal on all ranks."""
    decided = replica.ledger.get(target)
    if decided is not None:
        where = f" at step {decided.step}" if decided.step is not None else ""
        return _unapplied(replica, command, step, "rejected", f"it was already {decided.status}{where}")
    generation = replica.generation
    replica.ledger[target] = CommandSettled(
        uuid=target, status="cancelled", step=step, generation=generation, reason=command.takes_back()
    )
    after = {"cancelled": str(target)}
    return CommandSettled(uuid=command.uuid, status="applied", step=step, generation=generation, after=after)


def _applied(replica: Replica, command: Command, step: int, readings: list[Applied]) -> CommandSettled:
    return CommandSettled(
        uuid=command.uuid,
        status="applied",
        step=step,
        generation=replica.generation,
        before=readings[0].before,
        after=readings[0].after,
        world_size=len(readings),
        ranks=tuple(reading.after for reading in readings) if len(readings) <= MAX_RANKS_LISTED else (),
    )


def _unapplied(replica: Replica, command: Command, step: int, status: Any, reason: str) -> CommandSettled:
    return CommandSettled(uuid=command.uuid, status=status, step=step, generation=replica.generation, reason=reason)


def _disagreement(results: list[Applied | Failure]) -> str | None:
    """Return the reason why the ranks' results differ, or None if they are equal."""
    # Every rank goes through the results of all ranks: with thousands of them this must stay cheap.
    if Failure in map(type, results):
        return _name_ranks([result.reason if isinstance(result, Failure) else None for result in results])
    readings = cast(list[Applied], results)
    first = readings[0]
    for rank, reading in enumerate(readings):
        if reading is first:
            continue
        if not _same(reading.after, first.after):
            return f"rank {rank} read {reading.after} back, rank 0 read {first.after}"
        if not _same(reading.before, first.before):
            return f"before the change, rank {rank} read {reading.before}, rank 0 read {first.before}"
    return None


def _same(one: Readback, other: Readback) -> bool:
    """Return whether two readbacks are equal as JSON: a NaN on every rank (a diverged eval loss) counts as equal."""
    return _canonical(one) == _canonical(other)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _name_ranks(reasons: list[str | None]) -> str:
    """Return one sentence for many ranks: each distinct reason once, with the ranks that gave it."""
    ranks_by_reason: dict[str, list[str]] = {}
    for rank, reason in enumerate(reasons):
        if reason is not None:
            ranks_by_reason.setdefault(reason or "no reason given", []).append(str(rank))
    if len(ranks_by_reason) == 1 and None not in reasons:
        return next(iter(ranks_by_reason))
    named = [f"{_listed(ranks)}: {reason}" for reason, ranks in ranks_by_reason.items()]
    more = len(named) - MAX_RANKS_LISTED
    return "; ".join(named[:MAX_RANKS_LISTED]) + (f"; and {more} other reasons" if more > 0 else "")


def _listed(ranks: list[str]) -> str:
    more = len(ranks) - MAX_RANKS_LISTED
    listed = ", ".join(ranks[:MAX_RANKS_LISTED]) + (f" and {more} more" if more > 0 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"
