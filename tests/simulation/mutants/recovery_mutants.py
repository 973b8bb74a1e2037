"""Planted mutants of the recovery: worlds that resume, or repeat, in a way that somebody might really write."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from control_plane.core.boundary import Repeat, Replica, Steps
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict
from control_plane.core.model.records import Entry, GenerationStarted, RunResumed
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import crash_loop, recovery
from control_plane.core.rules.branch_rules import ScheduledCommand
from control_plane.core.rules.recovery import Decided, Replay, ResumePoint, replay_after
from tests.simulation.mutants.core_mutants import MAX_PROPOSED, proposing
from tests.simulation.world.parts import Parts
from tests.simulation.world.server import Rules

Evolve = Callable[[RunState, Entry], None]


def ledger_forgotten(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """The trainers do not know what their state contains, and neither do their checkpoints."""
    return replace(replay_after(decided, contained, scheduled), ledger={})


def repeats_forgotten(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """What came after the checkpoint is gone."""
    return replace(replay_after(decided, contained, scheduled), repeats=())


def pause_forgotten(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """A restored run always runs."""
    return replace(replay_after(decided, contained, scheduled), paused=False)


def repeats_backwards(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """The newest command first."""
    replay = replay_after(decided, contained, scheduled)
    return replace(replay, repeats=replay.repeats[::-1])


def repeats_a_step_late(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """At the step after the one where it took effect."""
    replay = replay_after(decided, contained, scheduled)
    return replace(replay, repeats=tuple(Repeat(each.command, each.step + 1) for each in replay.repeats))


def repeats_what_is_contained(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """Whatever was applied is applied again, whether the checkpoint contains it or not."""
    return replay_after(decided, (), scheduled)


def repeats_what_was_rejected(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """A second chance for the rejected."""
    replay = replay_after(decided, contained, scheduled)
    rejected = [
        each for each in decided if each.outcome.status == "rejected" and str(each.command.uuid) not in contained
    ]
    again = tuple(Repeat(each.command, each.outcome.step or 0) for each in rejected)
    ledger = {uuid: outcome for uuid, outcome in replay.ledger.items() if uuid not in {r.command.uuid for r in again}}
    return replace(replay, ledger=ledger, repeats=(*replay.repeats, *again))


def new_before_old(replica: Replica, step: int) -> Steps:
    """New offers are taken although there is history left to repeat."""

    def propose(real: tuple[Command, ...], offered: Sequence[Command]) -> tuple[Command, ...]:
        if not replica.repeats:
            return real
        known = {*replica.ledger, *(command.uuid for command in real)}
        new = [each for each in offered if each.uuid not in known and (each.not_before_step or 0) <= step]
        return (*new, *real)[:MAX_PROPOSED]

    return proposing(replica, step, propose)


class HastyReplica(Replica):
    """The next step begins although there is something left to repeat."""

    __slots__ = ()

    def is_behind(self, step: int) -> bool:
        """Never."""
        return False


def with_fold(change: Evolve) -> Rules:
    """The rules with another fold, live and recovered alike."""

    def recover(entries: list[Entry]) -> RunState:
        state = RunState()
        for entry in entries:
            change(state, Entry.from_line(entry.line()))
        return state

    return Rules(evolve=change, recover=recover)


def pause_reset_by_a_start(state: RunState, entry: Entry) -> None:
    """New trainers, no pause."""
    evolve(state, entry)
    if isinstance(entry.record, GenerationStarted):
        state.paused = False


def pause_kept_by_a_resumption(state: RunState, entry: Entry) -> None:
    """A stop that is over is remembered as one that is not."""
    evolve(state, entry)
    if isinstance(entry.record, RunResumed):
        state.resumed_seq = 0


def lost_and_heard(state: RunState, generation: int) -> None:
    """Trainers that were declared failed still write history."""
    if generation != state.generation_number:
        raise Conflict(f"generation {generation} is over", generation=generation)


def abandoned_candidates(state: RunState) -> ResumePoint:
    """Any checkpoint will do, if only it is the newest."""
    return recovery.resume_point(replace(state, checkpoints=replace(state.checkpoints, abandoned={})))


def acceptance_order(state: RunState) -> ResumePoint:
    """History in the order in which it was asked for."""
    point = recovery.resume_point(state)
    accepted = {uuid: life.accepted_seq for uuid, life in state.commands.items()}
    ordered = sorted(point.decided, key=lambda each: accepted[each.command.uuid])
    return point.model_copy(update={"decided": tuple(ordered)})


RECOVERY_MUTANTS: dict[str, Parts] = {
    "the ledger is forgotten": Parts(replay=ledger_forgotten),
    "the repeats are forgotten": Parts(replay=repeats_forgotten),
    "the restored pause is forgotten": Parts(replay=pause_forgotten),
    "history is repeated backwards": Parts(replay=repeats_backwards),
    "history is repeated a step late": Parts(replay=repeats_a_step_late),
    "history is repeated from its beginning": Parts(replay=repeats_what_is_contained),
    "what was rejected is repeated": Parts(replay=repeats_what_was_rejected),
    "history is repeated in the order of acceptance": Parts(rules=Rules(resume_point=acceptance_order)),
    "new commands come before old ones": Parts(boundary=new_before_old),
    "a step is made before its repeats are done": Parts(replica=HastyReplica),
    "checkpoints are recorded before outcomes": Parts(rules=Rules(checkpoints_first=True)),
    "a start resets the pause": Parts(rules=with_fold(pause_reset_by_a_start)),
    "a stop is repeated in a run that was resumed": Parts(rules=with_fold(pause_kept_by_a_resumption)),
    "a lost generation is listened to": Parts(rules=Rules(check_generation=lost_and_heard)),
}


def gives_up_at_once(state: RunState) -> str | None:
    """A loss without a new step is enough."""
    return "lost" if len(crash_loop.failures_without_a_new_step(state)) > 1 else None


GIVING_UP: dict[str, Parts] = {
    "a run is never given up": Parts(rules=Rules(give_up=lambda state: None)),
    "a run is given up at its second loss": Parts(rules=Rules(give_up=gives_up_at_once)),
}

# It takes five events in their order, which random histories seldom have.
BY_STORY: dict[str, Parts] = {
    "a checkpoint of an abandoned history is restored": Parts(rules=Rules(resume_point=abandoned_candidates)),
}
