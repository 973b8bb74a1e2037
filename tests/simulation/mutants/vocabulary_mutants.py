"""Planted mutants of the newer rules: views, limits, cancels, several knobs at once, times, pins, pauses, fencing."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from control_plane.core.boundary import (
    AllGather,
    Applied,
    Apply,
    Broadcast,
    Effect,
    Failure,
    ReadKnobs,
    Replica,
    Steps,
    boundary,
)
from control_plane.core.model.commands import Command, Pause, Resume, SetKnobs, Stop
from control_plane.core.model.intents import Cancel, ResetParameters, RunAction, SetSchedule, SkipSamples, Unfreeze
from control_plane.core.model.records import CheckpointDiscarded, CommandSettled, Entry, Record
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import ScheduledCommand
from control_plane.core.rules.recovery import Decided, Replay, replay_after
from tests.simulation.mutants.core_mutants import MAX_PROPOSED, altered, proposing
from tests.simulation.mutants.recovery_mutants import with_fold
from tests.simulation.world.parts import Parts
from tests.simulation.world.rank import SimRank
from tests.simulation.world.server import Rules


def retimed(change: Callable[[Command], dict[str, Any]]) -> Callable[[Replica, int], Steps]:
    """What comes out of the broadcast has other times."""

    def run(replica: Replica, step: int) -> Steps:
        def other(effect: Effect, answer: Any) -> Any:
            if not isinstance(effect, Broadcast):
                return answer
            return tuple(command.model_copy(update=change(command)) for command in answer)

        return altered(replica, step, change_answer=other)

    return run


def a_step_less(command: Command) -> dict[str, Any]:
    """Its last step is one earlier."""
    last = command.not_after_step
    return {} if last is None else {"not_after_step": last - 1}


def proposed_a_step_early(replica: Replica, step: int) -> Steps:
    """Rank 0 counts the step that is to come."""

    def propose(real: tuple[Command, ...], offered: Sequence[Command]) -> tuple[Command, ...]:
        if replica.repeats:
            return real
        early = [
            each
            for each in offered
            if each.not_before_step == step + 1 and each.uuid not in replica.ledger and each not in real
        ]
        return (*real, *early)[:MAX_PROPOSED]

    return proposing(replica, step, propose)


def target_not_taken_out(replica: Replica, step: int) -> Steps:
    """What is cancelled in a proposal stands in it as well."""

    def propose(real: tuple[Command, ...], offered: Sequence[Command]) -> tuple[Command, ...]:
        targets = {each.intent.command for each in real if isinstance(each.intent, Cancel)}
        return (*real, *(each for each in offered if each.uuid in targets))

    return proposing(replica, step, propose)


def knobs_not_compared(replica: Replica, step: int) -> Steps:
    """Nobody compares what the ranks hold."""
    steps = boundary(replica, step)
    answer = None
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration:
            return
        if isinstance(effect, ReadKnobs):
            return
        answer = yield effect


def one_of_many_read(replica: Replica, step: int) -> Steps:
    """Of the readings that are compared only those of the first two ranks are looked at."""

    def shorten(effect: Effect, answer: Any) -> Any:
        is_reading = isinstance(effect, AllGather) and isinstance(effect.value, Applied | Failure)
        return [answer[0]] * len(answer) if is_reading else answer

    return altered(replica, step, change_answer=shorten)


def applied_twice(replica: Replica, step: int) -> Steps:
    """An action is carried out a second time, to be sure."""
    steps = boundary(replica, step)
    answer = None
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration:
            return
        answer = yield effect
        if isinstance(effect, Apply) and isinstance(effect.command.intent, RunAction) and isinstance(answer, Applied):
            answer = yield effect


class ObedientReplica(Replica):
    """A cancel takes back what was applied, on paper."""

    __slots__ = ()

    def decide(self, command: Command, outcome: CommandSettled) -> None:
        """Obey it."""
        if isinstance(command.intent, Cancel) and outcome.status == "rejected":
            was = self.ledger[command.intent.command]
            self.ledger[was.uuid] = was.model_copy(update={"status": "cancelled"})
            outcome = outcome.model_copy(update={"status": "applied", "reason": None})
        super().decide(command, outcome)


class HeldReplica(Replica):
    """A resume is decided, and nobody goes on."""

    __slots__ = ()

    def decide(self, command: Command, outcome: CommandSettled) -> None:
        """Stay paused."""
        was = self.paused
        super().decide(command, outcome)
        if isinstance(command.intent, Resume):
            self.paused = was


class PausedByItsStopReplica(Replica):
    """A stop of a paused run leaves it paused."""

    __slots__ = ()

    def decide(self, command: Command, outcome: CommandSettled) -> None:
        """Forget that a stop ends a pause."""
        was = self.paused
        super().decide(command, outcome)
        if isinstance(command.intent, Stop):
            self.paused = was


class UnboundRank(SimRank):
    """Votes without looking at the run's limits."""

    __slots__ = ()

    def breach(self, changes: tuple[Any, ...]) -> str | None:
        """Nothing is too much."""
        return None


class HalfRank(SimRank):
    """Every rank but the first carries out one change of many, and answers as if it were all."""

    __slots__ = ()

    def apply(self, command: Command) -> Applied | Failure:
        """Do a part of it."""
        result = super().apply(command)
        if self.rank > 0 and isinstance(command.intent, SetKnobs) and isinstance(result, Applied):
            for change in command.intent.changes[1:]:
                self.values[change.knob] = list(self.before[1][change.knob])
        return result


class LenientRank(SimRank):
    """A knob that is not known is passed over; the others are set."""

    __slots__ = ()

    def check(self, command: Command, step: int, is_repeat: bool = False) -> str | None:
        """Vote about what is known."""
        return super().check(_known_part(command), step, is_repeat)

    def apply(self, command: Command) -> Applied | Failure:
        """Set what is known."""
        return super().apply(_known_part(command))


def _known_part(command: Command) -> Command:
    if not isinstance(command.intent, SetKnobs):
        return command
    known = tuple(change for change in command.intent.changes if change.knob != "unheard of")
    return command.model_copy(update={"intent": command.intent.model_copy(update={"changes": known})})


class StickyRank(SimRank):
    """Undo puts knobs back, and leaves what was frozen, reset, scheduled or run."""

    __slots__ = ()

    def undo(self) -> str | None:
        """Put back half of it."""
        marks = self.marks
        problem = super().undo()
        self.marks = marks if problem is None else self.marks
        return problem


class ForgetfulRank(SimRank):
    """A checkpoint holds no schedule, no frozen parameters and no calls."""

    __slots__ = ()

    def saved(self) -> dict[str, Any]:
        """Knobs and effects alone."""
        return {name: kept for name, kept in super().saved().items() if name != "marks"}


def view_ignored(state: RunState, command: Command, *rest: Any) -> list[Record]:
    """Whatever the sender has seen, it is taken."""
    return decisions.accept(replace(state, course_seq=0), command, *rest)


def view_ignored_for_cancels(state: RunState, command: Command, *rest: Any) -> list[Record]:
    """As it was: a cancel, a pin and a deletion were taken whatever their sender had seen."""
    is_old = command.intent.kind in ("cancel", "pin_checkpoint", "delete_checkpoint")
    return decisions.accept(replace(state, course_seq=0) if is_old else state, command, *rest)


def limits_ignored(state: RunState, command: Command, *rest: Any) -> list[Record]:
    """The ranks will look at the limits; why ask twice?"""
    return decisions.accept(replace(state, limits={}), command, *rest)


def pause_on_its_way_ignored(state: RunState, command: Command, *rest: Any) -> list[Record]:
    """What is pending does not count: a pause and a resume look at what was applied alone."""
    about = isinstance(command.intent, Pause | Resume) and command.uuid not in state.commands
    return decisions.accept(replace(state, pending={}) if about else state, command, *rest)


def pin_ignored(state: RunState, command: Command, *rest: Any) -> list[Record]:
    """Deleted is deleted."""
    loose = [each.model_copy(update={"pinned": False}) for each in state.checkpoints.existing]
    return decisions.accept(replace(state, checkpoints=replace(state.checkpoints, existing=loose)), command, *rest)


def discarded_kept(state: RunState, entry: Entry) -> None:
    """What was discarded stays among the checkpoints."""
    before = list(state.checkpoints.existing)
    evolve(state, entry)
    if isinstance(entry.record, CheckpointDiscarded):
        state.checkpoints.existing = before


def newer_kinds_not_repeated(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """History repeats itself, but for the kinds that came later."""
    replay = replay_after(decided, contained, scheduled)
    newer = SetSchedule | Unfreeze | ResetParameters | RunAction | SkipSamples
    return replace(replay, repeats=tuple(each for each in replay.repeats if not isinstance(each.command.intent, newer)))


VOCABULARY_MUTANTS: dict[str, Parts] = {
    "a stale view is no obstacle": Parts(rules=Rules(accept=view_ignored)),
    "a stale view is no obstacle to a cancel": Parts(rules=Rules(accept=view_ignored_for_cancels)),
    "limits are not looked at when a command comes in": Parts(rules=Rules(accept=limits_ignored)),
    "limits are not looked at in the vote": Parts(rank=UnboundRank),
    "a cancel is obeyed after its target was applied": Parts(replica=ObedientReplica),
    "what is cancelled is carried out as well": Parts(boundary=target_not_taken_out),
    "all ranks but one carry out a part of several changes": Parts(rank=HalfRank),
    "an unknown knob among several is passed over": Parts(rank=LenientRank),
    "only one reading is compared": Parts(boundary=one_of_many_read),
    "an action is carried out twice": Parts(boundary=applied_twice),
    "a command expires a step early": Parts(boundary=retimed(a_step_less)),
    "a command is carried out a step early": Parts(boundary=proposed_a_step_early),
    "a resume leaves the pause": Parts(replica=HeldReplica),
    "a stop leaves the pause": Parts(replica=PausedByItsStopReplica),
    "a pause on its way does not count": Parts(rules=Rules(accept=pause_on_its_way_ignored)),
    "a discarded checkpoint is restored": Parts(rules=with_fold(discarded_kept)),
    "undo leaves what was frozen, reset or run": Parts(rank=StickyRank),
    "a checkpoint forgets what was frozen, reset or run": Parts(rank=ForgetfulRank),
    "the newer kinds are not repeated after a loss": Parts(replay=newer_kinds_not_repeated),
    "a server that was replaced still writes": Parts(rules=Rules(is_fenced=lambda mine, newest: False)),
}

# Nobody changes a rank's knobs behind its back in random histories: that would break them all.
BY_STORY: dict[str, Parts] = {
    "knobs are never compared": Parts(boundary=knobs_not_compared),
    "a pinned checkpoint is deleted": Parts(rules=Rules(accept=pin_ignored)),
}
