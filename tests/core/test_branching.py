"""Branching: where a rollback may go, what it makes of a run, and runs that have a parent."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from control_plane.core import decisions
from control_plane.core.boundary import Repeat, Replica, propose
from control_plane.core.branching import Origin, Scheduled, first_uuid, stands_on
from control_plane.core.commands import Command
from control_plane.core.errors import Conflict, Invalid, NotFound, Refused, RunEnded
from control_plane.core.limits import Limit
from control_plane.core.records import (
    BranchResumed,
    BranchStarted,
    CheckpointDiscarded,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationEnded,
    GenerationRecovered,
    Parent,
    Record,
    RunClosed,
    RunResumed,
)
from control_plane.core.recovery import (
    MAX_LOSSES_WITHOUT_PROGRESS,
    reason_to_give_up,
    replay_after,
    resume_point,
)
from control_plane.core.state import RunState, evolve
from control_plane.views import retired_checkpoints
from tests.core.examples import (
    accepted,
    command,
    committed,
    created,
    intent,
    lost,
    running,
    settled,
    start,
    started,
    state_after,
    uuid,
)
from tests.core.test_branches import back_to, began, changed

HALVED = {"kind": "set_learning_rate", "factor": 0.5}
FROZEN = {"kind": "freeze", "parameters": "head"}
ENDED = GenerationEnded(generation=1, ending="left", step=30)


def rollback(number: int = 50, **body: Any) -> Command:
    return command(number, "rollback", **body)


def gone_back(number: int = 50, step: int = 30, generation: int | None = 1, to: int = 10) -> CommandSettled:
    """What the ranks say of a rollback to the checkpoint of step `to`."""
    after = {"checkpoint": f"step-{to}-g1", "step": to, "from_branch": "main"}
    return CommandSettled(uuid=uuid(number), status="applied", step=step, generation=generation, after=after)


def refuse(kind: type[Refused], words: str, state: RunState, request: Callable[[RunState], object]) -> None:
    before = deepcopy(state)
    with pytest.raises(kind, match=words):
        request(state)
    assert state == before


def after(state: RunState, *more: Record) -> RunState:
    """The state with these records folded in, too."""
    state = deepcopy(state)
    for record in more:
        evolve(state, Entry(seq=state.seq + 1, time="2030-01-01T00:00:00Z", record=record))
    return state


def taken_back(*first: dict[str, Any], **body: Any) -> RunState:
    """A run that trained to step 30 and was rolled back to 10, by command 50."""
    asked = CommandAccepted(command=rollback(checkpoint="step-10-g1", first=first, **body))
    state = running(committed(10), committed(20), *changed(1, 15), asked)
    return after(state, *decisions.settle(state, gone_back()))


# Where a rollback may go


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"checkpoint": "c9"}, NotFound, r"has no checkpoint 'c9'; the newest are step-10-g1, step-20-g1"),
        ({"checkpoint": "step-5-g1"}, NotFound, r"has no checkpoint 'step-5-g1'; it was discarded; the newest"),
        ({"checkpoint": "step-20-g1"}, Conflict, "was left behind when the trainers began before it"),
        ({"checkpoint": "step-10-g1", "branch": "main"}, Conflict, "has a branch 'main' already; choose another name"),
        ({"checkpoint": "step-10-g1", "branch": "b"}, Conflict, "has a branch 'b' already"),
        ({"branch": "main"}, Conflict, "is on branch main already"),
        ({"branch": "b"}, NotFound, "has no branch 'b'; it has main"),
        ({"checkpoint": "step-10-g1", "first": [HALVED | {"group": "gone"}]}, NotFound, "no parameter group 'gone'"),
    ],
)
def test_accept_of_a_rollback_to_where_nobody_can_go_is_refused(
    body: dict[str, Any], kind: type[Refused], words: str
) -> None:
    """Command 7, which is pending, is to begin branch b."""
    state = running(
        committed(5),
        committed(10),
        committed(20),
        CheckpointDiscarded(checkpoint="step-5-g1", reason="old"),
        lost(25),
        started(901, 2, step=10),
        accepted(7, "rollback", checkpoint="step-10-g1", branch="b"),
    )
    if body == {"branch": "main"}:
        state = running(committed(10))
    refuse(kind, words, state, lambda state: decisions.accept(state, rollback(**body)))


def test_accept_of_a_rollback_while_trainers_train_leaves_it_to_them() -> None:
    asked = rollback(checkpoint="step-10-g1", branch="b", first=[HALVED])
    assert decisions.accept(running(committed(10)), asked) == [CommandAccepted(command=asked)]
    again = rollback(51, branch="main")
    pending = running(committed(10), CommandAccepted(command=asked))
    assert decisions.accept(pending, again) == [CommandAccepted(command=again)], "as it will be on b by then"


def test_accept_of_a_rollback_whose_changes_are_beyond_a_limit_is_refused() -> None:
    limited = created().model_copy(update={"limits": {"lr": Limit(max=1e-3)}})
    state = state_after(limited, started(), committed(10))
    asked = rollback(checkpoint="step-10-g1", first=[{"kind": "set_learning_rate", "value": 0.5}])
    refuse(Invalid, "lr", state, lambda state: decisions.accept(state, asked))


# What it makes of the run


def test_applied_rollback_begins_a_branch_with_its_changes_for_the_step_of_the_checkpoint() -> None:
    asked = CommandAccepted(command=rollback(checkpoint="step-10-g1", first=[HALVED, FROZEN]))
    state = running(committed(10), asked)
    outcome, branch, *firsts = decisions.settle(state, gone_back())
    assert outcome == gone_back()
    assert branch == BranchStarted(
        branch="branch-2", parent="main", checkpoint="step-10-g1", step=10, rollback=uuid(50)
    )
    uuids = [first_uuid(uuid(50), place) for place in range(2)]
    assert [each.command.uuid for each in firsts if isinstance(each, CommandAccepted)] == uuids
    assert [each.command.intent for each in firsts if isinstance(each, CommandAccepted)] == [
        intent(**HALVED),
        intent(**FROZEN),
    ]
    assert [each for each in firsts if isinstance(each, CommandScheduled)] == [
        CommandScheduled(uuid=each, step=10) for each in uuids
    ]


def test_rollback_that_is_told_twice_makes_one_branch() -> None:
    state = taken_back()
    assert decisions.settle(state, gone_back()) == []
    refuse(Conflict, "already settled", state, lambda s: decisions.settle(s, settled(50, "rejected", step=30)))


@pytest.mark.parametrize("status", ["rejected", "failed", "expired", "cancelled"])
def test_rollback_that_was_not_applied_makes_no_branch(status: str) -> None:
    state = running(committed(10), CommandAccepted(command=rollback(checkpoint="step-10-g1")))
    outcome = settled(50, status, step=30)
    assert decisions.settle(state, outcome) == [outcome]


def test_branch_takes_no_name_that_somebody_waits_for_and_none_twice() -> None:
    state = running(
        committed(10),
        CommandAccepted(command=rollback(50, checkpoint="step-10-g1")),
        CommandAccepted(command=rollback(51, checkpoint="step-10-g1", branch="branch-2")),
    )
    state = after(state, *decisions.settle(state, gone_back(50)))
    state = after(state, *decisions.settle(state, gone_back(51)))
    assert list(state.branches) == ["main", "branch-3", "branch-2"]


def test_run_that_was_taken_to_another_branch_waits_for_its_trainers() -> None:
    state = taken_back()
    assert (state.head, state.status, state.paused, state.stopping) == ("branch-2", "switching", False, False)
    state = after(state, ENDED, started(901, 2, step=10, branch="branch-2"))
    assert (state.status, state.generation_number, state.step) == ("running", 2, 10)


def test_rollback_to_a_branch_that_never_was_goes_on_with_the_head() -> None:
    """It cannot be accepted; but a server that breaks over it would never serve that run again."""
    state = running(CommandAccepted(command=rollback(branch="b")))
    (_, resumed) = decisions.settle(state, settled(50, after={"branch": "b"}))
    assert resumed == BranchResumed(branch="main", rollback=uuid(50))


def test_first_changes_are_told_to_the_trainers_of_their_branch_only() -> None:
    state = taken_back(HALVED)
    first = first_uuid(uuid(50), 0)
    assert [(each.command.uuid, each.step) for each in resume_point(state).scheduled] == [(first, 10)]
    assert state.pending_commands() == (), "they are offered to nobody"
    elsewhere = after(state, ENDED, began("c", 10))
    assert resume_point(elsewhere).scheduled == ()
    assert first in elsewhere.pending
    assert [each.command.uuid for each in resume_point(after(elsewhere, back_to("branch-2"))).scheduled] == [first]


def test_scheduled_commands_come_after_what_has_to_be_repeated() -> None:
    state = after(taken_back(HALVED), ENDED)
    point = resume_point(state)
    assert all(each.elsewhere for each in point.decided), "command 1 and the rollback itself"
    replay = replay_after(point.decided, set(), point.scheduled)
    assert replay.repeats == tuple(Repeat(each.command, each.step) for each in point.scheduled)
    assert uuid(50) in replay.ledger


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
        RunEnded, f"has {ending} its training; resume it", state, lambda s: decisions.accept(s, rollback(branch="b"))
    )


def test_finished_run_that_is_resumed_to_go_back_does_so_at_once() -> None:
    ended = GenerationEnded(generation=1, ending="finished", step=100)
    state = running(committed(10), ended, RunClosed(ending="finished"))
    refuse(Conflict, "nothing left to resume", state, lambda s: decisions.resume_run(s, "bo"))
    refuse(RunEnded, "takes no more", state, lambda s: decisions.accept(s, rollback(checkpoint="step-10-g1")))
    state = after(state, *decisions.resume_run(state, "bo", back=True))
    state = after(state, *decisions.accept(state, rollback(checkpoint="step-10-g1")))
    assert (state.head, state.status) == ("branch-2", "switching")
    assert [each.checkpoint for each in resume_point(state).candidates] == ["step-10-g1"]


# The trainers of the branch before


def test_start_of_trainers_that_were_told_of_another_branch_is_refused() -> None:
    state = after(taken_back(), ENDED)
    told = resume_point(state)
    refuse(Conflict, "was taken to branch branch-2", state, lambda s: decisions.start_generation(s, start(901)))
    of_it = start(901, branch="branch-2", branched_seq=told.branched_seq, step=10)
    assert decisions.start_generation(state, of_it)
    there_and_back = after(state, began("c", 10), back_to("branch-2"))
    refuse(Conflict, "was taken to", there_and_back, lambda s: decisions.start_generation(s, of_it))


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
    assert (state.paused, state.knobs, state.reached) == (False, knobs, {"main": 30, "branch-2": 10})
    assert [state.commands[uuid(number)].branch for number in (1, 2)] == ["main", "main"]
    state = after(state, ENDED, started(901, 2, step=10, branch="branch-2"))
    refuse(Conflict, "generation 1 is over", state, lambda s: decisions.check_generation(s, 1))


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
    still = after(state, *losses(12, 12, 12, generation=5))
    assert reason_to_give_up(still) is None, "the loss on the way is not the branch's"
    assert "lost 4 times at step 12" in str(reason_to_give_up(after(still, lost(12, 8))))
    going = after(state, *losses(12, 14, 16, generation=5), lost(18, 8))
    assert reason_to_give_up(going) is None, "though 30 was higher than all of them"


def test_trainers_that_never_get_to_their_branch_are_given_up() -> None:
    state = after(taken_back(), ENDED)
    for number in range(MAX_LOSSES_WITHOUT_PROGRESS):
        assert reason_to_give_up(state) is None
        (told,) = decisions.lose_generation(state, 1, 30, 0.5, (), uuid(800 + number))
        state = after(state, told)
    assert "at step 10 without a new step" in str(reason_to_give_up(state))


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
    refuse(Conflict, "is what a branch begins with", state, lambda s: decisions.accept(s, cancel))
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
    refuse(Conflict, "is what a branch stands on, or goes on from", state, lambda s: decisions.accept(s, asked))
    assert decisions.accept(state, command(61, "delete_checkpoint", checkpoint="step-5-g1"))


def test_delete_of_where_a_pending_rollback_goes_is_refused() -> None:
    state = running(committed(5), committed(10), accepted(50, "rollback", checkpoint="step-5-g1"))
    asked = command(60, "delete_checkpoint", checkpoint="step-5-g1")
    refuse(Conflict, "stands on", state, lambda s: decisions.accept(s, asked))


# Runs that have a parent


def scheduled(number: int, step: int, kind: str = "set_learning_rate", **body: Any) -> Scheduled:
    return Scheduled(command=command(number, kind, **(body or {"factor": 0.5})), step=step)


def replaying(*commands: Scheduled) -> RunState:
    origin = Origin(parent=Parent(kind="replay", run="r", step=40), scheduled=commands)
    return after(state_after(*decisions.create(RunState(), created(), origin)), started())


def test_fork_begins_at_its_checkpoint_with_its_first_changes() -> None:
    parent = Parent(kind="fork", run="r", checkpoint="step-10-g0", step=10)
    origin = Origin(parent=parent, checkpoint=committed(10, 0), scheduled=(scheduled(1, 10),))
    state = state_after(*decisions.create(RunState(), created(), origin))
    point = resume_point(state)
    assert (state.parent, point.branch, point.replays) == (parent, "main", False)
    assert [each.checkpoint for each in point.candidates] == ["step-10-g0"]
    assert point.scheduled == origin.scheduled
    assert stands_on(after(state, started(step=10), committed(20))) == {"step-10-g0", "step-20-g1"}
    assert decisions.create(state, created(), origin) == [], "told again by a later server"


def test_fork_that_goes_back_before_its_first_changes_leaves_them_on_its_first_branch() -> None:
    origin = Origin(parent=Parent(kind="fork", run="r"), checkpoint=committed(10, 0), scheduled=(scheduled(1, 10),))
    state = state_after(*decisions.create(RunState(), created(), origin))
    state = after(state, *decisions.accept(state, rollback(checkpoint="step-10-g0")))
    assert resume_point(state).scheduled == ()


def test_replay_is_told_its_history_up_to_the_rollback_and_what_the_next_branch_begins_with_first() -> None:
    back = Scheduled(command=rollback(checkpoint="step-10-g1", first=[FROZEN]), step=30)
    state = replaying(scheduled(1, 15), back, scheduled(2, 12), scheduled(3, 40, "stop", save=False))
    assert [each.command.uuid.int for each in resume_point(state).scheduled] == [1, 50]
    assert resume_point(state).replays
    state = after(state, settled(1, step=15), committed(10))
    state = after(state, *decisions.settle(state, gone_back()))
    told = resume_point(state).scheduled
    assert [(each.command.uuid, each.step) for each in told] == [
        (first_uuid(uuid(50), 0), 10),
        (uuid(2), 12),
        (uuid(3), 40),
    ]


def test_replay_takes_a_stop_though_it_ends_with_one_itself_and_no_change() -> None:
    state = replaying(scheduled(1, 15), scheduled(2, 40, "stop", save=False))
    assert decisions.accept(state, command(9, "stop"))
    refuse(
        Conflict,
        r"does again what r did; until that is done \(2 commands are left\)",
        state,
        lambda s: decisions.accept(s, command(9, "set_learning_rate", factor=2.0)),
    )
    refuse(
        Conflict,
        "or a replay does",
        state,
        lambda s: decisions.accept(s, command(9, "cancel", command=str(uuid(1)))),
    )


def test_ranks_that_replay_take_a_stop_when_it_is_due_and_nothing_else() -> None:
    left = (Repeat(command(1, "set_learning_rate", factor=0.5), 15),)
    replica = Replica(1, repeats=left, replays=True)
    stop, later, other = command(2, "stop"), command(3, "stop", not_before_step=12), command(4)
    assert propose(replica, (stop, later, other), 10) == (stop,)
    assert propose(replica, (later, other), 11) == ()
    assert propose(replica, (later, other), 12) == (later,)
    assert propose(replica, (stop,), 15) == (left[0].command,)
    assert propose(Replica(1, repeats=left), (stop,), 10) == ()
    assert propose(Replica(1, replays=True), (other,), 10) == (other,)


def test_ranks_that_replay_take_back_a_stop_that_they_have_not_taken() -> None:
    replica = Replica(1, repeats=(Repeat(command(1), 15),), replays=True)
    cancel = command(3, "cancel", command=str(uuid(2)))
    assert propose(replica, (command(2, "stop"), cancel), 10) == (cancel,)


# The boundary


def test_decided_at_a_step_is_what_any_generation_decided_there() -> None:
    """A checkpoint of a restored state contains it all."""
    ledger = {uuid(1): settled(1, step=10), uuid(2): settled(2, step=9), uuid(3): settled(3, step=10, generation=2)}
    assert Replica(2, ledger=ledger).decided_at(10) == (uuid(1), uuid(3))


def test_rollback_that_was_decided_ends_what_these_ranks_decide() -> None:
    replica = Replica(1)
    replica.decide(rollback(branch="b"), settled(50, "rejected"))
    assert replica.leaving is None
    replica.decide(rollback(branch="b"), settled(50))
    assert replica.leaving == rollback(branch="b")
