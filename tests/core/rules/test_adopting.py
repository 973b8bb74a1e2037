"""Adopting: a checkpoint of another run begins a branch, and nothing of that run's history comes with it."""

from typing import Any

import pytest

from control_plane.core.model.branch_tree import candidates, lineage
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotFound
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    CheckpointCommitted,
    CommandSettled,
    Entry,
    GenerationEnded,
    Parent,
    Record,
    RunClosed,
    TermStarted,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin, ScheduledCommand, go_on_with, stands_on
from control_plane.core.rules.recovery import resume_point
from control_plane.core.rules.replay_plan import recorded
from tests.core.examples import command, committed, created, running, started, state_after, uuid
from tests.core.model.test_branches import changed
from tests.core.rules.test_branching import after, refuse, rollback

FORK = Parent(kind="adopted", run="fork-1", branch="main", checkpoint="step-25-g1", step=25)
HERE = "step-25-g1-of-fork-1"
NOW = "2030-01-01T00:00:00Z"


def adoption(number: int = 60, **body: Any) -> Command:
    return command(number, "adopt_checkpoint", run="fork-1", **body)


def brought(branch: str = "branch-2", name: str = HERE, **origin: Any) -> AdoptedCheckpoint:
    checkpoint = CheckpointCommitted(
        checkpoint=name, step=25, generation=0, path=f"checkpoints/{name}", pinned=True, branch=branch
    )
    return AdoptedCheckpoint(origin=FORK.model_copy(update=origin), checkpoint=checkpoint, differing={"seed": [1, 2]})


def told_then(records: list[Record], asked: Command, **facts: Any) -> list[Record]:
    """These records, and what follows from a command."""
    return [*records, *decisions.accept(state_after(*records), asked, **facts)]


def settled_then(records: list[Record], number: int, step: int, **changes: Any) -> list[Record]:
    """These records, and what follows from what the ranks say of a command."""
    outcome = CommandSettled(uuid=uuid(number), status="applied", step=step, **changes)
    return [*records, *decisions.settle(state_after(*records), outcome)]


def adoption_told() -> list[Record]:
    """A run that is at step 30, with checkpoints of its own, and has adopted another run's at step 25."""
    begun = [created(), TermStarted(term=1, recovered=1), started(), committed(10), committed(20), *changed(1, 15)]
    return told_then(begun, adoption(), adopted=brought())


def turn_told() -> list[Record]:
    """The same, and it has been taken to the branch."""
    asked = told_then(adoption_told(), rollback(70, branch="branch-2"))
    left = settled_then(asked, 70, 30, generation=1, after={"branch": "branch-2"})
    return [*left, GenerationEnded(generation=1, ending="left", step=30)]


def adopted() -> RunState:
    return state_after(*adoption_told())


def gone_on() -> RunState:
    return state_after(*turn_told())


def test_adoption_makes_a_branch_and_leaves_the_run_where_it_is() -> None:
    before, state = running(committed(10), committed(20), *changed(1, 15)), adopted()
    assert (state.tree.head, state.step, state.paused) == (before.tree.head, before.step, before.paused)
    assert state.tree.branches["branch-2"].origin == FORK
    assert (state.tree.branches["branch-2"].parent, state.tree.branches["branch-2"].step) == (None, 25)
    life = state.commands[uuid(60)]
    assert life.settled is not None
    assert life.settled.after == {
        "branch": "branch-2",
        "checkpoint": HERE,
        "step": 25,
        "from_run": "fork-1",
        "from_branch": "main",
        "differing": {"seed": [1, 2]},
    }
    assert state.tree.reached == {"main": before.tree.reached["main"], "branch-2": 25}
    assert state.course_seq == before.course_seq, "what somebody saw of the run is as true as before"


def test_adopted_branch_begins_at_its_checkpoint_with_nothing_of_the_run() -> None:
    state = gone_on()
    point = resume_point(state)
    assert (point.branch, [each.checkpoint for each in point.candidates]) == ("branch-2", [HERE])
    assert all(each.elsewhere for each in point.decided), "what was commanded on main is not repeated there"
    assert [each.branch for each in lineage(state.tree, state.checkpoints, "branch-2")] == ["branch-2"]
    assert [each.checkpoint for each in candidates(state.tree, state.checkpoints, "main")] == [
        "step-20-g1",
        "step-10-g1",
    ]


def test_adopted_branch_goes_on_from_its_own_checkpoints_and_keeps_what_it_began_with() -> None:
    start = started(902, 2, step=25, checkpoint=HERE, branch="branch-2")
    state = after(gone_on(), start, committed(28, 2, branch="branch-2"))
    assert [each.checkpoint for each in resume_point(state).candidates] == ["step-28-g2", HERE]
    assert HERE in stands_on(state)
    refuse(
        Conflict,
        "would restart from it",
        state,
        lambda s: decisions.accept(s, command(80, "delete_checkpoint", checkpoint=HERE)),
    )


def test_adoption_is_taken_once_and_needs_no_files_the_second_time() -> None:
    state = adopted()
    assert decisions.to_be_adopted(state, adoption()) is None
    assert decisions.accept(state, adoption()) == []
    refuse(
        Conflict,
        "step-25-g1 of run fork-1 was adopted before, as branch branch-2",
        state,
        lambda s: decisions.accept(s, adoption(61), adopted=brought("branch-3")),
    )


def test_adoption_gets_a_name_that_no_branch_has_or_will_have() -> None:
    state = after(adopted(), *decisions.accept(adopted(), rollback(checkpoint="step-10-g1", branch="branch-3")))
    assert decisions.to_be_adopted(state, adoption(61)) == "branch-4"
    assert decisions.to_be_adopted(state, adoption(61, branch="best")) == "best"
    for name in ("main", "branch-2", "branch-3"):
        refuse(
            Conflict,
            f"has a branch '{name}' already",
            state,
            lambda s, name=name: decisions.to_be_adopted(s, adoption(61, branch=name)),  # type: ignore[misc]
        )


def test_adoption_whose_name_was_taken_while_its_files_came_is_refused() -> None:
    state = adopted()
    late = brought("branch-2", "step-9-g1-of-fork-1")
    refuse(
        Conflict, "has a branch 'branch-2' already", state, lambda s: decisions.accept(s, adoption(61), adopted=late)
    )


def test_adoption_of_the_run_itself_or_on_a_stale_view_is_refused_before_any_file_is_touched() -> None:
    state = running(committed(10), *changed(1, 15))
    own = command(60, "adopt_checkpoint", run=state.run)
    refuse(Invalid, "cannot adopt its own checkpoints", state, lambda s: decisions.to_be_adopted(s, own))
    stale = adoption().model_copy(update={"based_on_seq": 1})
    refuse(Conflict, "and resend", state, lambda s: decisions.to_be_adopted(s, stale))
    assert decisions.to_be_adopted(state, rollback(checkpoint="step-10-g1")) is None


def test_ended_run_adopts_and_goes_on_with_what_it_adopted() -> None:
    state = running(
        committed(10), GenerationEnded(generation=1, ending="finished", step=100), RunClosed(ending="finished")
    )
    asked = adoption(branch="best")
    state = after(state, *decisions.accept(state, asked, adopted=brought("best")))
    assert state.closed is not None, "it is as ended as before"
    state = after(state, *decisions.resume_run(state, "ann", back=True))
    on = go_on_with(asked)
    assert on.uuid == go_on_with(asked).uuid != asked.uuid
    records = decisions.accept(state, on)
    assert any(isinstance(record, BranchResumed) and record.branch == "best" for record in records)
    assert [each.checkpoint for each in resume_point(after(state, *records)).candidates] == [HERE]


def test_rollback_to_an_adopted_branch_that_there_is_not_is_refused() -> None:
    refuse(NotFound, "no branch 'best'", adopted(), lambda s: decisions.accept(s, rollback(branch="best")))


def test_replay_is_given_what_the_run_had_adopted_and_goes_there_at_the_same_step() -> None:
    start = started(902, 2, step=25, checkpoint=HERE, branch="branch-2")
    source = after(gone_on(), start, committed(28, 2, branch="branch-2"))
    on = ScheduledCommand(command=rollback(70, branch="branch-2"), step=30)
    origin = Origin(parent=Parent(kind="replay", run="r"), scheduled=(on,), adopted=(brought(),))
    state = state_after(*decisions.create(RunState(), created(), origin))
    assert state.tree.branches["branch-2"].origin == source.tree.branches["branch-2"].origin
    assert [each.command.uuid for each in resume_point(state).scheduled] == [uuid(70)]
    assert isinstance(decisions.create(RunState(), created(), origin)[1], BranchAdopted)


def test_recorded_run_does_not_save_again_what_it_was_given() -> None:
    """A rollback to the adopted checkpoint: the new run has it from its beginning, under the same name."""
    begun = [*turn_told(), started(902, 2, step=25, checkpoint=HERE, branch="branch-2")]
    asked = told_then(begun, rollback(71, checkpoint=HERE, branch="again"))
    reading = {"checkpoint": HERE, "step": 25, "from_branch": "branch-2"}
    left = settled_then(asked, 71, 27, generation=2, after=reading)
    told = [*left, started(903, 3, step=25, checkpoint=HERE, branch="again")]
    entries = [Entry(seq=seq, time=NOW, record=record) for seq, record in enumerate(told, start=1)]
    kinds = [(each.command.intent.kind, each.step) for each in recorded(entries)]
    assert kinds == [("set_learning_rate", 15), ("rollback", 30), ("rollback", 27), ("stop", 25)]


@pytest.mark.parametrize("body", [{"run": "Not A Run"}, {"run": "../etc"}, {"run": "a", "branch": "Best!"}, {}])
def test_adoption_of_what_can_be_no_run_or_branch_is_no_command(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pattern|required"):
        command(60, "adopt_checkpoint", **body)
