"""Runs that have a parent: a fork begins at its checkpoint, a replay does again what another run did."""

from typing import Any

from control_plane.core.boundary import Repeat, Replica, propose
from control_plane.core.model.errors import Conflict
from control_plane.core.model.records import (
    Parent,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import Origin, ScheduledCommand, first_uuid, stands_on
from control_plane.core.rules.recovery import (
    resume_point,
)
from tests.core.examples import (
    command,
    committed,
    created,
    settled,
    started,
    state_after,
    uuid,
)
from tests.core.rules.test_branching import FROZEN, after, gone_back, refuse, rollback

# Runs that have a parent


def scheduled(number: int, step: int, kind: str = "set_learning_rate", **body: Any) -> ScheduledCommand:
    return ScheduledCommand(command=command(number, kind, **(body or {"factor": 0.5})), step=step)


def replaying(*commands: ScheduledCommand) -> RunState:
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
    back = ScheduledCommand(command=rollback(checkpoint="step-10-g1", first=[FROZEN]), step=30)
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
        r"is replaying r: it can only be stopped until the 2 remaining",
        state,
        lambda s: decisions.accept(s, command(9, "set_learning_rate", factor=2.0)),
    )
    refuse(
        Conflict,
        "or it is replayed",
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
