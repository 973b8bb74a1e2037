"""Planted mutants: worlds with one part that is wrong in a way that somebody might really write."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from control_plane.core.boundary import (
    AllGather,
    AllReduceMin,
    Applied,
    Apply,
    Broadcast,
    Effect,
    Failure,
    Replica,
    Steps,
    TakeOffers,
    Undo,
    boundary,
)
from control_plane.core.model.commands import Command, SetKnobs
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, Record
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from control_plane.core.rules.decisions import GenerationStart
from tests.simulation.world.parts import Parts
from tests.simulation.world.rank import SimRank
from tests.simulation.world.server import Disk, Rules, recover

MAX_PROPOSED = 16


def altered(
    replica: Replica,
    step: int,
    change_effect: Callable[[Effect], Effect | None] = lambda effect: effect,
    change_answer: Callable[[Effect, Any], Any] = lambda effect, answer: answer,
) -> Steps:
    """The real boundary, with some of its effects or answers changed on the way. No effect: it is left out."""
    steps = boundary(replica, step)
    answer = None
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration:
            return
        changed = change_effect(effect)
        answer = change_answer(effect, (yield changed) if changed is not None else None)


def proposing(
    replica: Replica, step: int, propose: Callable[[tuple[Command, ...], Sequence[Command]], Iterable[Command]]
) -> Steps:
    """The real boundary, with another proposal of rank 0, made from the real one and from what it was offered."""
    offered: list[Command] = []

    def listen(effect: Effect, answer: Any) -> Any:
        if isinstance(effect, TakeOffers):
            offered[:] = answer
        return answer

    def speak(effect: Effect) -> Effect:
        return Broadcast(tuple(propose(effect.commands, offered))) if isinstance(effect, Broadcast) else effect

    return altered(replica, step, speak, listen)


def careless_propose(keep: Callable[[Replica, Command, int], bool]) -> Callable[[Replica, int], Steps]:
    """Rank 0 proposes whatever it is offered and `keep` lets through."""

    def run(replica: Replica, step: int) -> Steps:
        def kept(_: tuple[Command, ...], offered: Sequence[Command]) -> list[Command]:
            return [command for command in offered if keep(replica, command, step)][:MAX_PROPOSED]

        return proposing(replica, step, kept)

    return run


def _is_due(replica: Replica, command: Command, step: int) -> bool:
    return (command.not_before_step or 0) <= step


def _is_new(replica: Replica, command: Command, step: int) -> bool:
    return command.uuid not in replica.ledger


def vote_ignored(replica: Replica, step: int) -> Steps:
    """Every vote counts as a yes."""
    return altered(replica, step, change_answer=lambda e, answer: 1 if isinstance(e, AllReduceMin) else answer)


def readings_not_compared(replica: Replica, step: int) -> Steps:
    """Every rank believes that the others read what it read."""

    def believe(effect: Effect, answer: Any) -> Any:
        mine = effect.value if isinstance(effect, AllGather) else None
        return [mine] * len(answer) if isinstance(mine, Applied | Failure) else answer

    return altered(replica, step, change_answer=believe)


def undo_skipped(replica: Replica, step: int) -> Steps:
    """A failed command is called undone, and is not."""
    return altered(replica, step, change_effect=lambda effect: None if isinstance(effect, Undo) else effect)


def vote_on_rank_0_only(replica: Replica, step: int) -> Steps:
    """A rank that can do it does not take part in the vote, so that ranks no longer act alike."""

    def skip(effect: Effect) -> Effect | None:
        return None if effect == AllReduceMin(1) else effect

    return altered(replica, step, skip, lambda e, answer: 1 if e == AllReduceMin(1) else answer)


class EffectsOnlyReplica(Replica):
    """The ledger forgets what was rejected."""

    __slots__ = ()

    def decide(self, command: Command, outcome: CommandSettled) -> None:
        """Keep what was applied."""
        if outcome.status == "applied":
            super().decide(command, outcome)


class LazyRank(SimRank):
    """Only rank 0 does anything; the others say what they would have read."""

    __slots__ = ()

    def apply(self, command: Command) -> Applied | Failure:
        """Do it, answer, and put it back."""
        result = super().apply(command)
        if self.rank > 0:
            self.rates, self.values, self.marks, self.effects = self.before
        return result


class HopefulRank(SimRank):
    """Answers with the value that was asked for, and reads nothing back."""

    __slots__ = ()

    def apply(self, command: Command) -> Applied | Failure:
        """Say what should be live."""
        would = SimRank(self.rank, self.faults, **self.saved())
        result = super().apply(command)
        return would.apply(command) if isinstance(result, Applied) else result


class LazyDisk(Disk):
    """Durable at the next write, not at this one: confirmed before it is safe."""

    def write(self, records: Sequence[Record]) -> list[Entry]:
        """Make durable what came before."""
        super().sync()
        return super().write(records)

    def sync(self) -> None:
        """Nothing."""


def pending_forgotten(entries: list[Entry]) -> RunState:
    """A new server begins with an empty queue."""
    state = recover(entries)
    state.pending.clear()
    return state


def settlement_forgotten(entries: list[Entry]) -> RunState:
    """A new server offers again what was rejected."""
    state = recover(entries)
    state.pending |= {uuid: None for uuid, life in state.commands.items() if life.status == "rejected"}
    return state


def settle_again(state: RunState, outcome: CommandSettled) -> list[Record]:
    """Every report is news."""
    decisions.settle(state, outcome)
    return [outcome]


def accept_again(state: RunState, command: Command) -> list[Record]:
    """Every request is news."""
    if command.uuid in state.commands:
        return [CommandAccepted(command=command)]
    return decisions.accept(state, command)


def any_generation(state: RunState, generation: int) -> None:
    """Whoever speaks is listened to."""


def start_again(state: RunState, start: GenerationStart) -> list[Record]:
    """Only the newest start is remembered."""
    newest = state.generation.uuid if state.generation else None
    return [] if start.uuid == newest else decisions.start_generation(replace(state, starts={}), start)


def expiry_ignored(replica: Replica, step: int) -> Steps:
    """The commands that come out of the broadcast have no last step any more."""

    def forget(effect: Effect, answer: Any) -> Any:
        if not isinstance(effect, Broadcast):
            return answer
        return tuple(command.model_copy(update={"not_after_step": None}) for command in answer)

    return altered(replica, step, change_answer=forget)


def one_change_of_many(replica: Replica, step: int) -> Steps:
    """Of several changes in one command only the first is carried out."""

    def first(effect: Effect) -> Effect:
        if not isinstance(effect, Apply) or not isinstance(effect.command.intent, SetKnobs):
            return effect
        intent = effect.command.intent.model_copy(update={"changes": effect.command.intent.changes[:1]})
        return Apply(effect.command.model_copy(update={"intent": intent}), effect.step)

    return altered(replica, step, change_effect=first)


def knobs_not_undone(rank: type[SimRank] = SimRank) -> type[SimRank]:
    """Undo puts back the learning rates, and forgets the other knobs."""

    class Forgetful(rank):  # type: ignore[misc, valid-type]
        def undo(self) -> str | None:
            kept = deepcopy(self.values)
            problem: str | None = super().undo()
            if problem is None:
                self.values = kept
            return problem

    return Forgetful


MUTANTS: dict[str, Parts] = {
    "a command that is too late is carried out": Parts(boundary=expiry_ignored),
    "one change of many is carried out": Parts(boundary=one_change_of_many),
    "knobs are not put back": Parts(rank=knobs_not_undone()),
    "the ledger is ignored in propose": Parts(boundary=careless_propose(_is_due)),
    "not_before_step is ignored": Parts(boundary=careless_propose(_is_new)),
    "the vote is ignored": Parts(boundary=vote_ignored),
    "ranks that can do not vote": Parts(boundary=vote_on_rank_0_only),
    "readings are not compared": Parts(boundary=readings_not_compared),
    "undo is skipped": Parts(boundary=undo_skipped),
    "the ledger keeps effects only": Parts(replica=EffectsOnlyReplica),
    "only rank 0 applies": Parts(rank=LazyRank),
    "what was asked for is called what was read": Parts(rank=HopefulRank),
    "acknowledged before it is durable": Parts(disk=LazyDisk),
    "pending commands are forgotten on restart": Parts(rules=Rules(recover=pending_forgotten)),
    "rejections are forgotten on restart": Parts(rules=Rules(recover=settlement_forgotten)),
    "an outcome told twice is recorded twice": Parts(rules=Rules(settle=settle_again)),
    "a command sent twice is accepted twice": Parts(rules=Rules(accept=accept_again)),
    "a stale generation is listened to": Parts(rules=Rules(check_generation=any_generation)),
    "a late announcement starts a generation": Parts(rules=Rules(start_generation=start_again)),
}
