"""Branching: where a rollback may go, what it makes of a run, and runs that have a parent."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from control_plane.core.boundary import Repeat, Replica
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotFound, Refused
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    BranchResumed,
    BranchStarted,
    CheckpointDiscarded,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationEnded,
    Record,
)
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import first_uuid
from control_plane.core.rules.recovery import (
    replay_after,
    resume_point,
)
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
from tests.core.model.test_branches import back_to, began, changed

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
        ({"checkpoint": "step-20-g1"}, Conflict, "is abandoned"),
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
    assert list(state.tree.branches) == ["main", "branch-3", "branch-2"]


def test_run_that_was_taken_to_another_branch_waits_for_its_trainers() -> None:
    state = taken_back()
    assert (state.tree.head, state.status, state.paused, state.stopping) == ("branch-2", "switching", False, False)
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
