"""Cancels, stale views, last steps, pins and deletions: what is decided about them, and by whom."""

import pytest

from control_plane.core.boundary import Replica, propose
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotFound, RunEnded
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    CheckpointDiscarded,
    CheckpointPinned,
    CommandAccepted,
    CommandSettled,
    RunClosed,
    RunResumed,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from tests.core.examples import (
    accepted,
    command,
    committed,
    created,
    intent,
    lost,
    running,
    settled,
    started,
    state_after,
    uuid,
)
from tests.core.rules.test_decisions import assert_refused
from tests.core.test_boundary import Script


def cancel(number: int, target: int) -> Command:
    return command(number, "cancel", command=str(uuid(target)))


def test_cancel_while_trainers_listen_is_theirs_to_decide() -> None:
    state = running(accepted(1, not_before_step=50))
    assert decisions.accept(state, cancel(2, 1)) == [CommandAccepted(command=cancel(2, 1))]


@pytest.mark.parametrize("records", [(created(),), (created(), started(), lost(5))], ids=["waiting", "lost"])
def test_cancel_while_nobody_trains_is_settled_at_once(records: tuple) -> None:
    state = state_after(*records, accepted(1))
    told = decisions.accept(state, cancel(2, 1))
    outcomes = {record.uuid: record.status for record in told if isinstance(record, CommandSettled)}
    assert outcomes == {uuid(1): "cancelled", uuid(2): "applied"}
    assert state_after(*records, accepted(1), *told).pending == {}


def test_cancel_of_what_is_settled_unknown_or_a_cancel_is_refused() -> None:
    state = running(
        accepted(1), settled(1), accepted(2, not_before_step=9), accepted(3, "cancel", command=str(uuid(2)))
    )
    assert_refused(Conflict, state, lambda s: decisions.accept(s, cancel(9, 1)), "already applied")
    assert_refused(NotFound, state, lambda s: decisions.accept(s, cancel(9, 8)), "never accepted a command")
    assert_refused(Conflict, state, lambda s: decisions.accept(s, cancel(9, 3)), "cannot be cancelled")


def test_cancel_is_taken_while_a_stop_is_pending_and_not_after_the_end() -> None:
    stopping = running(accepted(1, "stop"))
    assert decisions.accept(stopping, cancel(2, 1)) == [CommandAccepted(command=cancel(2, 1))]
    closed = running(accepted(1), RunClosed(ending="finished"))
    assert_refused(RunEnded, closed, lambda s: decisions.accept(s, cancel(2, 1)), "has finished")


def test_propose_a_cancel_that_is_too_late_keeps_nothing_from_its_step() -> None:
    asked = command(1).model_copy(update={"not_after_step": 10})
    late = cancel(2, 1).model_copy(update={"not_after_step": 9})
    assert propose(Replica(generation=1), (asked, late), 10) == (late, asked)


def test_cancel_says_who_took_it_back_and_why_whoever_decides_it() -> None:
    mistaken = cancel(2, 1).model_copy(update={"reason": "a mistake"})
    by_rule = decisions.accept(state_after(created(), accepted(1)), mistaken)[1:]
    by_ranks = Script(Replica(generation=1)).propose(mistaken).outcome(1)
    assert isinstance(by_rule[0], CommandSettled)
    assert by_rule[0].reason == by_ranks.reason == "cancelled by ann: a mistake"


def test_cancel_that_came_too_late_for_a_stop_is_rejected_when_the_run_is_resumed() -> None:
    """Simulated: new trainers are not told of a stop that is over, and would have said that it was taken back."""
    state = running(accepted(1, "stop"), accepted(2, "cancel", command=str(uuid(1))), accepted(3), settled(1))
    *rejected, resumed = decisions.resume_run(state, "bo")
    assert [(each.uuid, each.status) for each in rejected if isinstance(each, CommandSettled)] == [
        (uuid(2), "rejected")
    ]
    assert isinstance(resumed, RunResumed)


def test_propose_takes_back_first_and_leaves_the_target_out() -> None:
    offers = (command(1), command(2), cancel(3, 2))
    assert propose(Replica(generation=1), offers, 10) == (cancel(3, 2), command(1))


def test_boundary_cancels_what_was_not_decided() -> None:
    script = Script(Replica(generation=1)).propose(cancel(2, 1))
    assert (script.outcome(2).status, script.outcome(1).status) == ("applied", "cancelled")


def test_boundary_rejects_a_cancel_that_comes_too_late() -> None:
    replica = Replica(generation=1)
    Script(replica).propose(command(1)).settle(command(1))
    outcome = Script(replica).propose(cancel(2, 1)).outcome(2)
    assert (outcome.status, outcome.reason) == ("rejected", "it was already applied at step 10")
    assert replica.ledger[uuid(1)].status == "applied"


@pytest.mark.parametrize(("last", "status"), [(9, "expired"), (10, None)])
def test_boundary_after_the_last_step_lets_a_command_expire(last: int, status: str | None) -> None:
    asked = command(1).model_copy(update={"not_after_step": last})
    script = Script(Replica(generation=1)).propose(asked)
    if status is None:
        assert script.settle(asked).outcome(1).status == "applied"
    else:
        assert script.outcome(1).status == status


def test_command_whose_last_step_is_before_its_first_is_refused() -> None:
    with pytest.raises(ValueError, match="before 'not_before_step' 6"):
        Command(uuid=uuid(1), author="ann", intent=intent("evaluate"), not_before_step=6, not_after_step=5)


def test_accept_of_a_stale_view_is_a_conflict_that_says_what_changed() -> None:
    state = running(accepted(1, "set_learning_rate", value=1e-4))
    seen = state.course_seq
    fresh = command(2).model_copy(update={"based_on_seq": seen})
    assert decisions.accept(state, fresh) == [CommandAccepted(command=fresh)]
    stale = command(2).model_copy(update={"based_on_seq": seen - 1})
    assert_refused(Conflict, state, lambda s: decisions.accept(s, stale), "ann: lr = 0.0001 .entry 4.; read the run")


@pytest.mark.parametrize(
    "asked",
    [
        cancel(9, 1),
        command(9, "pin_checkpoint", checkpoint="step-10-g1"),
        command(9, "delete_checkpoint", checkpoint="step-10-g1"),
    ],
    ids=["cancel", "pin", "delete"],
)
def test_stale_view_counts_for_every_kind_and_a_known_uuid_comes_first(asked: Command) -> None:
    state = running(committed(10), committed(20), accepted(1, not_before_step=50), accepted(2, "pause"))
    stale = asked.model_copy(update={"based_on_seq": state.course_seq - 1})
    assert_refused(Conflict, state, lambda s: decisions.accept(s, stale), "and resend")
    fresh = asked.model_copy(update={"based_on_seq": state.course_seq})
    told = decisions.accept(state, fresh)
    assert told[0] == CommandAccepted(command=fresh)
    after = [committed(10), committed(20), accepted(1, not_before_step=50), accepted(2, "pause"), *told]
    assert decisions.accept(running(*after, accepted(3, "set_learning_rate", value=1e-4)), fresh) == []


def test_pause_that_is_planned_for_later_stands_in_nobodys_way() -> None:
    planned = running(accepted(1, "pause", not_before_step=50))
    assert decisions.accept(planned, command(2, "pause")) == [CommandAccepted(command=command(2, "pause"))]
    assert_refused(Conflict, planned, lambda s: decisions.accept(s, command(2, "resume")), "is not paused")


@pytest.mark.parametrize("record", [accepted(1, "evaluate"), committed(10)], ids=["evaluation", "checkpoint"])
def test_view_is_not_stale_after_what_changes_nothing(record: object) -> None:
    before = running()
    state = running(record)  # type: ignore[arg-type]
    assert state.course_seq == before.course_seq


def limited(**limit: object) -> RunState:
    run = created().model_copy(update={"limits": {"lr": Limit.model_validate(limit)}})
    return state_after(run, started(), accepted(1, "set_learning_rate", value=1e-4), settled(1, after={"lr": [1e-4]}))


def test_accept_beyond_a_limit_is_refused_and_says_the_bound() -> None:
    asked = command(2, "set_learning_rate", value=0.5)
    assert_refused(Invalid, limited(max=0.1), lambda s: decisions.accept(s, asked), "at most 0.1")


def test_accept_within_the_cool_down_is_refused_until_it_is_over() -> None:
    asked, state = command(2, "set_learning_rate", value=1e-3), limited(cool_down_s=60)
    assert state.changed_seq == {"lr": 4}
    assert_refused(Invalid, state, lambda s: decisions.accept(s, asked, {"lr": 59.0}), "try again in 1 s")
    assert decisions.accept(state, asked, {"lr": 60.0}) == [CommandAccepted(command=asked)]


def test_pin_and_unpin_are_settled_at_once_also_after_the_end() -> None:
    for state in (running(committed(10)), running(committed(10), RunClosed(ending="finished"))):
        asked = command(1, "pin_checkpoint", checkpoint="step-10-g1")
        told = decisions.accept(state, asked)
        assert [type(record) for record in told] == [CommandAccepted, CheckpointPinned, CommandSettled]
    after = running(committed(10), *told)
    assert after.checkpoints.existing[0].pinned
    unpinned = decisions.accept(after, command(2, "pin_checkpoint", checkpoint="step-10-g1", pinned=False))
    assert not running(committed(10), *told, *unpinned).checkpoints.existing[0].pinned


def test_delete_removes_an_old_checkpoint_and_says_who_did() -> None:
    state = running(committed(10), committed(20))
    told = decisions.accept(state, command(1, "delete_checkpoint", checkpoint="step-10-g1"))
    assert CheckpointDiscarded(checkpoint="step-10-g1", reason="deleted by ann") in told
    assert [each.checkpoint for each in running(committed(10), committed(20), *told).checkpoints.existing] == [
        "step-20-g1"
    ]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("step-20-g1", Conflict, "is the newest"),
        ("step-10-g1", Conflict, "is pinned"),
        ("step-5-g1", Conflict, "were restored from it"),
        ("step-7-g1", NotFound, "the newest are step-5-g1, step-10-g1, step-20-g1"),
        ("../x", NotFound, "has no checkpoint"),
    ],
)
def test_delete_of_what_must_stay_is_refused(name: str, kind: type[Conflict], words: str) -> None:
    again = started(901, 2, step=5, checkpoint="step-5-g1-universal")
    state = running(committed(5), again, committed(10, pinned=True), committed(20))
    assert_refused(kind, state, lambda s: decisions.accept(s, command(1, "delete_checkpoint", checkpoint=name)), words)


def test_settle_of_what_two_cancels_took_back_is_recorded_once() -> None:
    """Simulated: one while nobody trained, one that waited for the trainers who came."""
    state = running(accepted(1), settled(1, "cancelled", None, generation=None), started(901, 2))
    assert decisions.settle(state, settled(1, "cancelled", 3, generation=2)) == []
