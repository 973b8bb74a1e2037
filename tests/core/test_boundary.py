"""The boundary, driven by hand: one generator, and the effects it yields."""

import math
from collections.abc import Generator
from typing import Any

import pytest

from control_plane.core.boundary import (
    COMPARE_EVERY_STEPS,
    MAX_COMMANDS_PER_PROPOSAL,
    PAUSE_POLL_S,
    AllGather,
    AllReduceMin,
    Applied,
    Apply,
    Broadcast,
    Check,
    Effect,
    Failure,
    ReadKnobs,
    Replica,
    TakeOffers,
    Undo,
    Wait,
    boundary,
    propose,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Diverged
from control_plane.core.model.records import MAX_RANKS_LISTED, CommandSettled
from tests.core.examples import command, uuid

FINISHED = "finished"
DONE = Applied(before={"lr": [1e-3]}, after={"lr": [1e-4]})
OTHER = Applied(before={"lr": [1e-3]}, after={"lr": [2e-4]})


class Script:
    """Sends scripted answers into a boundary. `expect` names the effect that must come before the answer is sent."""

    def __init__(self, replica: Replica, step: int = 10) -> None:
        self.replica = replica
        self._steps: Generator[Effect, Any, None] = boundary(replica, step)
        self.effect: Effect | str = next(self._steps)

    def expect(self, effect: Effect, answer: Any = None) -> "Script":
        """The boundary must be asking for this effect; it is sent this answer."""
        assert self.effect == effect
        try:
            self.effect = self._steps.send(answer)
        except StopIteration:
            self.effect = FINISHED
        return self

    def propose(self, *commands: Command) -> "Script":
        """Rank 0 is offered these commands, and proposes them."""
        return self.expect(TakeOffers(), commands).expect(Broadcast(commands), commands)

    def apply(self, asked: Command, mine: Applied | Failure, results: list[Applied | Failure]) -> "Script":
        """Everyone can, and these are the results."""
        self.expect(Check(asked)).expect(AllReduceMin(1), 1)
        return self.expect(Apply(asked, 10), mine).expect(AllGather(mine), results)

    def settle(self, asked: Command) -> "Script":
        """The command is applied alike by two ranks."""
        return self.apply(asked, DONE, [DONE, DONE])

    def outcome(self, number: int) -> CommandSettled:
        """What the ledger says about command `number`, after the boundary ended."""
        assert self.effect == FINISHED
        return self.replica.ledger[uuid(number)]


def test_quiet_boundary_is_one_broadcast_of_nothing() -> None:
    replica = Replica(generation=1)
    assert Script(replica).propose().effect == FINISHED
    assert replica.ledger == {}


def test_other_rank_proposes_nothing_and_follows_what_was_broadcast() -> None:
    asked = command(1)
    script = Script(Replica(generation=3)).expect(TakeOffers(), ()).expect(Broadcast(()), (asked,)).settle(asked)
    assert script.outcome(1).generation == 3


def test_command_that_every_rank_applied_is_settled_with_every_reading() -> None:
    outcome = Script(Replica(generation=1)).propose(command(1)).settle(command(1)).outcome(1)
    assert (outcome.status, outcome.step, outcome.world_size) == ("applied", 10, 2)
    assert (outcome.before, outcome.after) == (DONE.before, DONE.after)
    assert outcome.ranks == (DONE.after, DONE.after)


def test_readings_of_many_ranks_are_not_listed_one_by_one() -> None:
    many: list[Applied | Failure] = [DONE] * (MAX_RANKS_LISTED + 1)
    outcome = Script(Replica(generation=1)).propose(command(1)).apply(command(1), DONE, many).outcome(1)
    assert (outcome.world_size, outcome.ranks, outcome.after) == (MAX_RANKS_LISTED + 1, (), DONE.after)


@pytest.mark.parametrize(("mine", "vote"), [("it is a constant", 0), (None, 1), ("", 0)])
def test_command_that_one_rank_cannot_do_is_rejected_and_never_applied(mine: str | None, vote: int) -> None:
    script = Script(Replica(generation=1)).propose(command(1))
    script.expect(Check(command(1)), mine).expect(AllReduceMin(vote), 0)
    script.expect(AllGather(mine), [None, "it is a constant", None])
    outcome = script.outcome(1)
    assert (outcome.status, outcome.step, outcome.reason) == ("rejected", 10, "rank 1: it is a constant")
    assert outcome.after is None


def test_reason_that_all_ranks_share_is_told_once() -> None:
    script = Script(Replica(generation=1)).propose(command(1)).expect(Check(command(1)), "no group 7")
    assert script.expect(AllReduceMin(0), 0).expect(AllGather("no group 7"), ["no group 7"] * 3).outcome(1).reason == (
        "no group 7"
    )


def test_reasons_of_many_ranks_are_bounded() -> None:
    refusals = [f"reason {rank % 50}" for rank in range(4096)]
    script = Script(Replica(generation=1)).propose(command(1)).expect(Check(command(1)), refusals[0])
    reason = script.expect(AllReduceMin(0), 0).expect(AllGather(refusals[0]), refusals).outcome(1).reason
    assert reason is not None
    assert reason.startswith("ranks 0, 50, 100, 150, 200, 250, 300, 350 and 74 more: reason 0; ranks 1,")
    assert reason.endswith("; and 42 other reasons")
    assert len(reason) < 1000


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([DONE, Failure("out of memory")], "rank 1: out of memory; undone on all ranks"),
        ([Failure("boom"), Failure("boom")], "boom; undone on all ranks"),
        ([Failure(""), Failure("")], "no reason given; undone on all ranks"),
        ([DONE, Failure("")], "rank 1: no reason given; undone on all ranks"),
    ],
)
def test_command_that_a_rank_failed_to_apply_is_undone_on_all(results: list[Applied | Failure], reason: str) -> None:
    script = Script(Replica(generation=1)).propose(command(1)).apply(command(1), results[0], results)
    outcome = script.expect(Undo(command(1)), None).expect(AllGather(None), [None, None]).outcome(1)
    assert (outcome.status, outcome.reason, outcome.after) == ("failed", reason, None)


def test_command_whose_readings_differ_is_undone_on_all() -> None:
    script = Script(Replica(generation=1)).propose(command(1)).apply(command(1), DONE, [DONE, OTHER])
    outcome = script.expect(Undo(command(1)), None).expect(AllGather(None), [None, None]).outcome(1)
    assert outcome.status == "failed"
    assert outcome.reason == "rank 1 read {'lr': [0.0002]} back, rank 0 read {'lr': [0.0001]}; undone on all ranks"


def test_command_before_which_readings_differed_is_undone_and_says_so() -> None:
    odd = Applied(before={"lr": [9.0]}, after=DONE.after)
    script = Script(Replica(generation=1)).propose(command(1)).apply(command(1), DONE, [DONE, odd])
    outcome = script.expect(Undo(command(1)), None).expect(AllGather(None), [None, None]).outcome(1)
    assert outcome.reason == (
        "before the change, rank 1 read {'lr': [9.0]}, rank 0 read {'lr': [0.001]}; undone on all ranks"
    )


def test_nan_that_every_rank_read_is_agreement() -> None:
    lost = [Applied(before={}, after={"eval_loss": math.nan}) for _ in range(2)]
    outcome = Script(Replica(generation=1)).propose(command(1)).apply(command(1), lost[0], list(lost)).outcome(1)
    assert (outcome.status, outcome.after) == ("applied", {"eval_loss": "NaN"})


@pytest.mark.parametrize("failures", [[None, "the scheduler is gone"], [None, ""]])
def test_undo_that_fails_on_one_rank_ends_the_generation(failures: list[str | None]) -> None:
    replica = Replica(generation=1)
    script = Script(replica).propose(command(1)).apply(command(1), DONE, [DONE, OTHER])
    script.expect(Undo(command(1)), None)
    with pytest.raises(Diverged, match=r"could not be undone: rank 1: ") as caught:
        script.expect(AllGather(None), failures)
    assert caught.value.detail == {"uuid": str(uuid(1)), "step": 10}
    assert replica.ledger[uuid(1)].status == "failed"


def test_pause_holds_the_boundary_and_still_takes_commands_until_a_resume() -> None:
    pause, resume, between = command(1, "pause"), command(2, "resume"), command(3)
    script = Script(Replica(generation=1)).propose(pause).settle(pause)
    script.expect(Wait(PAUSE_POLL_S)).propose()
    script.expect(Wait(PAUSE_POLL_S)).propose(between).settle(between)
    script.expect(Wait(PAUSE_POLL_S)).propose(resume).settle(resume)
    assert script.effect == FINISHED
    assert not script.replica.paused


def test_pause_that_was_rejected_holds_nothing() -> None:
    script = Script(Replica(generation=1)).propose(command(1, "pause"))
    script.expect(Check(command(1, "pause")), "no").expect(AllReduceMin(0), 0).expect(AllGather("no"), ["no", None])
    assert script.outcome(1).status == "rejected"
    assert not script.replica.paused


def test_stop_ends_a_pause() -> None:
    pause, stop = command(1, "pause"), command(2, "stop")
    script = Script(Replica(generation=1)).propose(pause).settle(pause)
    assert script.expect(Wait(PAUSE_POLL_S)).propose(stop).settle(stop).effect == FINISHED
    assert script.replica.stopping
    assert not script.replica.paused


def test_pause_after_a_stop_does_not_hold_a_run_that_is_ending() -> None:
    stop, pause = command(1, "stop"), command(2, "pause")
    assert Script(Replica(generation=1)).propose(stop, pause).settle(stop).settle(pause).effect == FINISHED


@pytest.mark.parametrize("status", ["applied", "rejected"])
def test_stale_offer_of_a_decided_command_is_not_proposed(status: str) -> None:
    replica = Replica(generation=1)
    script = Script(replica).propose(command(1))
    if status == "applied":
        script.settle(command(1))
    else:
        script.expect(Check(command(1)), "no").expect(AllReduceMin(0), 0).expect(AllGather("no"), ["no", "no"])
    decided = script.outcome(1)
    again = Script(replica, step=11).expect(TakeOffers(), (command(1),)).expect(Broadcast(()), ())
    assert again.outcome(1) is decided
    assert decided.status == status


@pytest.mark.parametrize(("step", "due"), [(0, False), (49, False), (50, True), (51, True)])
def test_command_waits_for_its_step(step: int, due: bool) -> None:
    later = command(1, not_before_step=50)
    assert propose(Replica(generation=1), (later,), step) == ((later,) if due else ())


def test_proposal_takes_a_command_that_was_offered_twice_once() -> None:
    assert propose(Replica(generation=1), (command(1), command(2), command(1)), 10) == (command(1), command(2))


def test_proposal_takes_the_oldest_up_to_its_limit_and_the_rest_later() -> None:
    offers = tuple(command(number) for number in range(1, 41))
    replica = Replica(generation=1)
    first = propose(replica, offers, 10)
    assert first == offers[:MAX_COMMANDS_PER_PROPOSAL]
    script = Script(replica).expect(TakeOffers(), offers).expect(Broadcast(first), first)
    for asked in first:
        script.settle(asked)
    assert propose(replica, offers, 11) == offers[MAX_COMMANDS_PER_PROPOSAL : 2 * MAX_COMMANDS_PER_PROPOSAL]


def test_ranks_compare_their_knobs_now_and_then_and_go_on_if_they_are_equal() -> None:
    script = Script(Replica(generation=1), step=COMPARE_EVERY_STEPS).propose().expect(ReadKnobs(), {"lr": [math.nan]})
    assert isinstance(script.effect, AllGather)
    digest = script.effect.value
    assert script.expect(AllGather(digest), [digest, digest]).effect == FINISHED
    assert Script(Replica(generation=1), step=COMPARE_EVERY_STEPS + 1).propose().effect == FINISHED


def test_knob_that_one_rank_holds_otherwise_is_named_with_the_rank_and_both_values() -> None:
    script = Script(Replica(generation=1), step=2 * COMPARE_EVERY_STEPS).propose()
    mine = {"lr": [1e-3], "weight_decay": [0.1]}
    script.expect(ReadKnobs(), mine)
    assert isinstance(script.effect, AllGather)
    digest = script.effect.value
    script.expect(AllGather(digest), [digest, digest, "another"])
    with pytest.raises(Diverged, match=r"rank 2 holds weight_decay \[0.2\], rank 0 holds \[0.1\]"):
        script.expect(AllGather(mine), [mine, mine, {"lr": [1e-3], "weight_decay": [0.2]}])
