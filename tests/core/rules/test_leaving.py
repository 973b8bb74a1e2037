"""Around a rollback: nobody trains, the trainers of the branch before, their losses, and the checkpoints that stay."""

from copy import deepcopy
from typing import Any

import pytest

from control_plane.core.model.errors import Conflict, RunEnded
from control_plane.core.model.records import (
    BranchStarted,
    CommandAccepted,
    CommandSettled,
    GenerationEnded,
    GenerationRecovered,
    Parent,
    Record,
    RunClosed,
    RunResumed,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import Origin, first_uuid, stands_on
from control_plane.core.rules.checkpoint_rules import retired_checkpoints
from control_plane.core.rules.crash_loop import SAME_FAILURES, reason_to_give_up
from control_plane.core.rules.recovery import resume_point
from tests.core.examples import (
    accepted,
    command,
    committed,
    created,
    lost,
    running,
    settled,
    start,
    started,
    state_after,
    uuid,
)
from tests.core.model.test_branches import back_to, began
from tests.core.rules.test_branching import HALVED, after, gone_back, refuse, rollback, taken_back

ENDED = GenerationEnded(generation=1, ending="left", step=30)

# Nobody trains


@pytest.mark.parametrize(
    "records",
    [(lost(25),), (ENDED,), (RunClosed(ending="stopped"), RunResumed(author="bo"))],
    ids=["lost", "left", "resumed"],
)
def test_rollback_is_settled_at_once_when_nobody_trains(records: tuple[Record, ...]) -> None:
    state = running(committed(10), *records)
    _, outcome, branch = decisions.accept(state, rollback(checkpoint="step-10-g1", branch="b"))
    assert isinstance(outcome, CommandSettled)
    assert (outcome.status, outcome.generation) == ("applied", None)
    assert isinstance(branch, BranchStarted)
    assert (branch.branch, branch.step) == ("b", 10)


@pytest.mark.parametrize("when", [{"not_before_step": 40}, {"not_after_step": 40}], ids=str)
def test_rollback_for_a_certain_step_waits_for_the_next_trainers(when: dict[str, int]) -> None:
    asked = rollback(checkpoint="step-10-g1").model_copy(update=when)
    assert decisions.accept(running(committed(10), lost(25)), asked) == [CommandAccepted(command=asked)]


def test_rollback_before_the_first_trainers_is_settled_at_once() -> None:
    origin = Origin(parent=Parent(kind="fork", run="r", checkpoint="step-10-g0"), checkpoint=committed(10, 0))
    state = state_after(*decisions.create(RunState(), created(), origin))
    assert [type(each) for each in decisions.accept(state, rollback(checkpoint="step-10-g0"))] == [
        CommandAccepted,
        CommandSettled,
        BranchStarted,
    ]


@pytest.mark.parametrize("ending", ["finished", "stopped"])
def test_rollback_between_the_end_of_the_training_and_that_of_the_run_is_refused(ending: Any) -> None:
    ended = GenerationEnded(generation=1, ending=ending, step=100)
    state = running(committed(10), ended)
    refuse(
        RunEnded,
        f"has {ending} training and is shutting down",
        state,
        lambda s: decisions.accept(s, rollback(branch="b")),
    )


def test_finished_run_that_is_resumed_to_go_back_does_so_at_once() -> None:
    ended = GenerationEnded(generation=1, ending="finished", step=100)
    state = running(committed(10), ended, RunClosed(ending="finished"))
    refuse(Conflict, "cannot be resumed, only rolled back", state, lambda s: decisions.resume_run(s, "bo"))
    refuse(RunEnded, "takes no more", state, lambda s: decisions.accept(s, rollback(checkpoint="step-10-g1")))
    state = after(state, *decisions.resume_run(state, "bo", back=True))
    state = after(state, *decisions.accept(state, rollback(checkpoint="step-10-g1")))
    assert (state.tree.head, state.status) == ("branch-2", "switching")
    assert [each.checkpoint for each in resume_point(state).candidates] == ["step-10-g1"]


# The trainers of the branch before


def test_start_of_trainers_that_were_told_of_another_branch_is_refused() -> None:
    state = after(taken_back(), ENDED)
    told = resume_point(state)
    refuse(Conflict, "was switched to branch branch-2", state, lambda s: decisions.start_generation(s, start(901)))
    of_it = start(901, branch="branch-2", branched_seq=told.branched_seq, step=10)
    assert decisions.start_generation(state, of_it)
    there_and_back = after(state, began("c", 10), back_to("branch-2"))
    refuse(Conflict, "was switched to", there_and_back, lambda s: decisions.start_generation(s, of_it))


def test_outcome_of_the_generation_before_is_recorded_and_says_nothing_of_the_branch() -> None:
    state = running(
        committed(10),
        accepted(1, "pause"),
        accepted(2, "set_learning_rate", factor=0.5),
        CommandAccepted(command=rollback(checkpoint="step-10-g1")),
    )
    state = after(state, *decisions.settle(state, gone_back()))
    knobs = dict(state.knobs)
    for late in (settled(1, step=29), settled(2, step=29, after={"lr": [9.0, 9.0]})):
        state = after(state, *decisions.settle(state, late))
    assert (state.paused, state.knobs, state.tree.reached) == (False, knobs, {"main": 30, "branch-2": 10})
    assert [state.commands[uuid(number)].branch for number in (1, 2)] == ["main", "main"]
    state = after(state, ENDED, started(901, 2, step=10, branch="branch-2"))
    refuse(Conflict, "generation 1 is not the current one", state, lambda s: decisions.check_generation(s, 1))


def losses(*steps: int, generation: int = 2) -> list[Record]:
    """Trainers of the branch die at these steps, again and again."""
    return [
        record
        for at, step in enumerate(steps)
        for record in (lost(step, generation + at), started(910 + at, generation + at + 1, step=10, branch="branch-2"))
    ]


def test_losses_before_a_rollback_do_not_count_and_those_on_the_branch_do() -> None:
    before = [lost(30, 1), started(901, 2), lost(30, 2), started(902, 3), lost(30, 3), started(903, 4)]
    state = running(committed(10), *before, CommandAccepted(command=rollback(checkpoint="step-10-g1")))
    state = after(state, *decisions.settle(state, gone_back(generation=4)), lost(30, 4))
    state = after(state, started(904, 5, step=10, branch="branch-2"))
    assert reason_to_give_up(state) is None
    still = after(state, *losses(12, 12, generation=5))
    assert reason_to_give_up(still) is None, "the loss on the way is not the branch's"
    assert "failed 3 times in a row in the same way, at step 12" in str(reason_to_give_up(after(still, lost(12, 7))))
    going = after(state, *losses(12, 14, 16, generation=5), lost(18, 8))
    assert reason_to_give_up(going) is None, "though 30 was higher than all of them"


def test_trainers_that_never_get_to_their_branch_are_given_up() -> None:
    state = after(taken_back(), ENDED)
    for number in range(SAME_FAILURES):
        assert reason_to_give_up(state) is None
        (told,) = decisions.fail_generation(state, 1, 30, 0.5, (), uuid(800 + number))
        state = after(state, told)
    assert "in the same way, before their first step after a restart" in str(reason_to_give_up(state))


def test_recovery_is_told_by_those_who_came_after_the_loss_only() -> None:
    told = GenerationRecovered(generation=3, step=11, lost_steps=0)
    state = running(
        committed(10), lost(20), started(901, 2, step=10), began("b", 10), started(902, 3, step=10, branch="b")
    )
    assert decisions.recover_generation(state, told) == []
    of_it = told.model_copy(update={"generation": 2})
    assert decisions.recover_generation(state, of_it) == [of_it]


# Pending rollbacks


def test_pending_rollback_is_cancelled_at_once_when_nobody_trains_and_expires_with_the_run() -> None:
    pending = CommandAccepted(command=rollback(checkpoint="step-10-g1"))
    cancel = command(60, "cancel", command=str(uuid(50)))
    _, target, own = decisions.accept(running(committed(10), pending, lost(25)), cancel)
    assert isinstance(target, CommandSettled)
    assert isinstance(own, CommandSettled)
    assert (target.uuid, target.status, own.status) == (uuid(50), "cancelled", "applied")
    assert decisions.accept(running(committed(10), pending), cancel) == [CommandAccepted(command=cancel)]
    expired, _ = decisions.close_run(running(committed(10), pending), "finished", None)
    assert isinstance(expired, CommandSettled)
    assert (expired.uuid, expired.status) == (uuid(50), "expired")


def test_what_a_branch_begins_with_cannot_be_cancelled_and_expires_with_the_run() -> None:
    """Trainers that nobody has heard of yet may have been told of it."""
    state, first = after(taken_back(HALVED), ENDED), first_uuid(uuid(50), 0)
    cancel = command(60, "cancel", command=str(first))
    refuse(Conflict, "cannot be cancelled", state, lambda s: decisions.accept(s, cancel))
    assert [each.uuid for each in decisions.close_run(state, "failed", None) if isinstance(each, CommandSettled)] == [
        first
    ]


# Which checkpoints stay


def kept_one(state: RunState, **changes: Any) -> list[str]:
    """What a retention of the last one lets go."""
    assert state.generation is not None
    state = deepcopy(state)
    state.generation = state.generation.model_copy(update={"retention": {"keep_last": 1}, **changes})
    return [each.checkpoint for each, _ in retired_checkpoints(state)]


def test_retention_keeps_what_a_branch_stands_on_goes_on_from_or_will_go_to() -> None:
    story = [committed(step) for step in (5, 10, 15, 20)]
    assert kept_one(running(*story)) == ["step-5-g1", "step-10-g1", "step-15-g1"]
    assert kept_one(running(*story, accepted(50, "rollback", checkpoint="step-5-g1"))) == ["step-10-g1", "step-15-g1"]
    branch = [began("b", 10), started(901, 2, step=10, branch="b", checkpoint="step-10-g1")]
    own = [committed(step, 2, branch="b") for step in (12, 14)]
    assert kept_one(running(*story, *branch, *own)) == ["step-5-g1", "step-15-g1", "step-12-g2"]


def test_what_a_branch_would_go_on_from_stays_though_it_is_neither_its_own_nor_its_base() -> None:
    """b trained from 5, as its base did not verify; then the run went back to main."""
    story = [committed(step) for step in (5, 10, 20)]
    branch = [began("b", 10), started(901, 2, step=5, branch="b"), back_to("main"), started(902, 3, step=20)]
    state = running(*story, *branch)
    assert stands_on(state) == {"step-5-g1", "step-10-g1", "step-20-g1"}
    assert kept_one(state) == []


@pytest.mark.parametrize("name", ["step-10-g1", "step-20-g1"])
def test_delete_of_what_a_branch_stands_on_or_goes_on_from_is_refused(name: str) -> None:
    state = running(
        committed(5),
        committed(10),
        committed(20),
        began("b", 10),
        started(901, 2, step=10, branch="b"),
        committed(12, 2, branch="b"),
    )
    asked = command(60, "delete_checkpoint", checkpoint=name)
    refuse(Conflict, "cannot be deleted", state, lambda s: decisions.accept(s, asked))
    assert decisions.accept(state, command(61, "delete_checkpoint", checkpoint="step-5-g1"))


def test_delete_of_where_a_pending_rollback_goes_is_refused() -> None:
    state = running(committed(5), committed(10), accepted(50, "rollback", checkpoint="step-5-g1"))
    asked = command(60, "delete_checkpoint", checkpoint="step-5-g1")
    refuse(Conflict, "would restart from it", state, lambda s: decisions.accept(s, asked))
