"""Planted mutants of the rules of branches: worlds that go back, or on, in a way that somebody might really write."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from uuid import UUID

from control_plane.core.boundary import Replica, Steps, boundary
from control_plane.core.model.branch_tree import lineage
from control_plane.core.model.commands import Pause, Resume, Stop
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CommandSettled,
    Entry,
    GenerationStarted,
    Record,
)
from control_plane.core.model.state import CommandStatus, RunState, evolve
from control_plane.core.rules import decisions, recovery
from control_plane.core.rules.branch_rules import ScheduledCommand
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import Decided, Replay, ResumePoint, replay_after
from control_plane.core.rules.retention import CheckpointFacts, Retention, to_discard
from tests.simulation.mutants.recovery_mutants import with_fold
from tests.simulation.world.parts import Parts
from tests.simulation.world.server import Rules

Told = Callable[[RunState], ResumePoint]


def elsewhere_ignored(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """Whatever any branch did is done again."""
    everything = [each.model_copy(update={"elsewhere": False}) for each in decided]
    return replay_after(everything, contained, scheduled)


def scheduled_dropped(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """What a branch is to begin with is not told to the ranks."""
    return replay_after(decided, contained)


def ledger_of_this_branch_only(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """What was decided on other branches is not known."""
    return replay_after([each for each in decided if not each.elsewhere], contained, scheduled)


def judged(is_of: Callable[[RunState, CommandStatus], bool]) -> Told:
    """Another opinion on what belongs to the history of the head."""

    def told(state: RunState) -> ResumePoint:
        point = recovery.resume_point(state)
        decided = []
        for each in point.decided:
            is_flag = isinstance(each.command.intent, Pause | Resume | Stop)
            elsewhere = each.elsewhere if is_flag else not is_of(state, state.commands[each.command.uuid])
            decided.append(each.model_copy(update={"elsewhere": elsewhere}))
        return point.model_copy(update={"decided": tuple(decided)})

    return told


def _at(life: CommandStatus) -> int:
    return (life.settled.step or 0) if life.settled else 0


def _cuts(state: RunState, life: CommandStatus) -> list[tuple[int, int, tuple[UUID, ...]]] | None:
    """Where this history leaves the command's branch: steps, seqs, what was decided there. None: it never was there."""
    for stretch in lineage(state.tree, state.checkpoints, state.tree.head):
        if stretch.branch == life.branch:
            return [(cut.step, cut.seq, cut.decided_here) for cut in stretch.cuts]
    return None


def only_its_own(state: RunState, life: CommandStatus) -> bool:
    """A branch has no history before its beginning."""
    return life.branch == state.tree.head


def all_of_the_step(state: RunState, life: CommandStatus) -> bool:
    """Of the step where a branch begins everything counts, whenever it was decided."""
    cuts = _cuts(state, life)
    return cuts is not None and all(_at(life) <= step and (life.settled_seq or 0) < seq for step, seq, _ in cuts)


def none_of_the_step(state: RunState, life: CommandStatus) -> bool:
    """Of the step where a branch begins nothing counts."""
    cuts = _cuts(state, life)
    return cuts is not None and all(_at(life) < step and (life.settled_seq or 0) < seq for step, seq, _ in cuts)


def by_steps_only(state: RunState, life: CommandStatus) -> bool:
    """What the parent does at earlier steps counts, also if it does that after the branch has begun."""
    cuts, uuid = _cuts(state, life), life.command.uuid
    return cuts is not None and all(_at(life) < step or (_at(life) == step and uuid in here) for step, _, here in cuts)


def at_the_nearest_cut(state: RunState, life: CommandStatus) -> bool:
    """Only where the command's own branch was left is looked at, and not where those after it were."""
    cuts, uuid = _cuts(state, life), life.command.uuid
    if not cuts:
        return cuts is not None
    step, seq, here = cuts[0]
    return (life.settled_seq or 0) < seq and (_at(life) < step or (_at(life) == step and uuid in here))


def offered(choose: Callable[[RunState], Sequence[CheckpointCommitted]]) -> Told:
    """Other candidates."""

    def told(state: RunState) -> ResumePoint:
        candidates = sorted(choose(state), key=lambda each: each.step)[::-1]
        return recovery.resume_point(state).model_copy(update={"candidates": tuple(candidates)})

    return told


def of_any_branch(state: RunState) -> list[CheckpointCommitted]:
    """The newest, whoever has saved it."""
    return [each for each in state.checkpoints.existing if each.checkpoint not in state.checkpoints.abandoned]


def of_the_line_by_steps(state: RunState) -> list[CheckpointCommitted]:
    """Those of a parent up to the step where it was left, also if they were saved after that."""
    found: list[CheckpointCommitted] = []
    for stretch in lineage(state.tree, state.checkpoints, state.tree.head):
        last = min((cut.step for cut in stretch.cuts), default=2**31)
        found += [each for each in of_any_branch(state) if each.branch == stretch.branch and each.step <= last]
    return found


def scheduled_of_every_branch(state: RunState) -> ResumePoint:
    """What any branch is still to begin with."""
    waiting = [uuid for uuid in state.pending if uuid in state.scheduled]
    scheduled = [ScheduledCommand(command=state.commands[uuid].command, step=state.scheduled[uuid]) for uuid in waiting]
    return recovery.resume_point(state).model_copy(update={"scheduled": tuple(scheduled)})


def flags_kept(state: RunState) -> ResumePoint:
    """A pause outlives a rollback."""
    branched, state.tree.branched_seq = state.tree.branched_seq, 0
    point = recovery.resume_point(state)
    state.tree.branched_seq = branched
    return point.model_copy(update={"branched_seq": branched})


def pause_kept(state: RunState, entry: Entry) -> None:
    """A branch begins as its parent was held."""
    paused = state.paused
    evolve(state, entry)
    if isinstance(entry.record, BranchStarted | BranchResumed):
        state.paused = paused


def firsts_are_offered(state: RunState, entry: Entry) -> None:
    """What a branch begins with is a command like any other."""
    evolve(state, entry)
    state.scheduled.clear()


def proposal_goes_on(replica: Replica, step: int) -> Steps:
    """What stands behind a rollback in a proposal is carried out, too."""
    steps, answer = boundary(replica, step), None
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration:
            break
        answer = yield effect
    if replica.leaving is not None:
        left, replica.leaving, replica.paused = replica.leaving, None, False
        yield from boundary(replica, step)
        replica.leaving = replica.leaving or left


class StayingReplica(Replica):
    """A rollback is entered like any other command, and training goes on."""

    __slots__ = ()

    def decide(self, command, outcome):  # type: ignore[no-untyped-def]
        """Stay."""
        super().decide(command, outcome)
        self.leaving = None


def any_start(state: RunState, start: GenerationStart) -> list[Record]:
    """Trainers that were told of another branch may begin."""
    told = replace(start, branch=state.tree.head, branched_seq=None)
    return [
        each.model_copy(update={"branch": start.branch}) if isinstance(each, GenerationStarted) else each
        for each in decisions.start_generation(state, told)
    ]


def branch_forgotten(state: RunState, outcome: CommandSettled) -> list[Record]:
    """A rollback is settled, and nothing comes of it."""
    return [each for each in decisions.settle(state, outcome) if not isinstance(each, BranchStarted | BranchResumed)]


def firsts_forgotten(state: RunState, outcome: CommandSettled) -> list[Record]:
    """A branch begins with nothing."""
    records = decisions.settle(state, outcome)
    turns = [at for at, each in enumerate(records, start=1) if isinstance(each, BranchStarted)]
    return records[: turns[0]] if turns else records


def one_name_for_all(state: RunState, outcome: CommandSettled) -> list[Record]:
    """Every branch is called as it was wished."""
    asked = state.commands[outcome.uuid].command.intent if outcome.uuid in state.commands else None
    name = (asked.branch if isinstance(asked, Rollback) else None) or "branch-2"
    return [
        each.model_copy(update={"branch": name}) if isinstance(each, BranchStarted) else each
        for each in decisions.settle(state, outcome)
    ]


def adopted_with_a_parent(state: RunState, entry: Entry) -> None:
    """An adopted branch has the history of the branch that was trained when it came."""
    evolve(state, entry)
    if isinstance(entry.record, BranchAdopted):
        given = replace(state.tree.branches[entry.record.branch], parent=state.tree.head, checkpoint="none")
        state.tree.branches[entry.record.branch] = given


def adopted_is_head(state: RunState, entry: Entry) -> None:
    """An adoption takes the run to its branch, though nobody has asked the ranks."""
    evolve(state, entry)
    if isinstance(entry.record, BranchAdopted):
        state.tree.head = entry.record.branch


def bases_may_go(state: RunState) -> list[tuple[CheckpointCommitted, str]]:
    """What branches stand on is kept no longer than the others."""
    wanted = state.generation.retention if state.generation else {}
    if not wanted:
        return []
    by_name = {each.checkpoint: each for each in state.checkpoints.existing}
    facts = [CheckpointFacts(each.checkpoint, each.step, pinned=each.pinned) for each in state.checkpoints.existing]
    gone = to_discard(facts, Retention.model_validate(wanted), ())
    return [(by_name[name], reason) for name, reason in gone]


BRANCH_MUTANTS: dict[str, Parts] = {
    "what other branches did is repeated": Parts(replay=elsewhere_ignored),
    "what a branch begins with is dropped": Parts(replay=scheduled_dropped),
    "a branch has no history of its parent": Parts(rules=Rules(resume_point=judged(only_its_own))),
    "nothing of the step where a branch begins is its history": Parts(
        rules=Rules(resume_point=judged(none_of_the_step))
    ),
    "checkpoints of any branch are candidates": Parts(rules=Rules(resume_point=offered(of_any_branch))),
    "later checkpoints of a parent are candidates": Parts(rules=Rules(resume_point=offered(of_the_line_by_steps))),
    "what another branch begins with is done on this one": Parts(rules=Rules(resume_point=scheduled_of_every_branch)),
    "pauses are repeated on a branch": Parts(rules=Rules(resume_point=flags_kept)),
    "a branch is as paused as its parent": Parts(rules=with_fold(pause_kept)),
    "what a branch begins with is offered": Parts(rules=with_fold(firsts_are_offered)),
    "a proposal goes on after a rollback": Parts(boundary=proposal_goes_on),
    "trainers stay after a rollback": Parts(replica=StayingReplica),
    "trainers of another branch may begin": Parts(rules=Rules(start_generation=any_start)),
    "a rollback makes no branch": Parts(rules=Rules(settle=branch_forgotten)),
    "a branch is not given what it begins with": Parts(rules=Rules(settle=firsts_forgotten)),
    "two branches have one name": Parts(rules=Rules(settle=one_name_for_all)),
    "an adopted branch stands on the head": Parts(rules=with_fold(adopted_with_a_parent)),
    "an adoption takes the run away": Parts(rules=with_fold(adopted_is_head)),
    "what a branch stands on is retired": Parts(rules=Rules(retire=bases_may_go)),
}

# It takes many events in their order, which random histories seldom have.
BY_STORY: dict[str, Parts] = {
    "the ledger is not carried to other branches": Parts(replay=ledger_of_this_branch_only),
    "all of the step where a branch begins is its history": Parts(rules=Rules(resume_point=judged(all_of_the_step))),
    "what a parent does later at earlier steps is repeated": Parts(rules=Rules(resume_point=judged(by_steps_only))),
    "only the nearest cut is looked at": Parts(rules=Rules(resume_point=judged(at_the_nearest_cut))),
}
