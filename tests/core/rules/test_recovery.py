"""Recovery: where to resume, what to repeat, when to give up; and the decisions around a loss."""

from collections.abc import Callable
from functools import partial

import pytest

from control_plane.core.boundary import MAX_COMMANDS_PER_PROPOSAL, Repeat, Replica, propose
from control_plane.core.model.errors import Conflict, NotFound, Refused, RunEnded
from control_plane.core.model.records import (
    CheckpointDiscarded,
    CheckpointFailed,
    CommandRepeated,
    CommandSettled,
    Death,
    GenerationLost,
    Record,
    RunClosed,
    RunResumed,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import checkpoint_rules, decisions
from control_plane.core.rules.recovery import (
    MAX_CANDIDATES,
    Replay,
    replay_after,
    resume_point,
)
from tests.core.examples import (
    accepted,
    command,
    committed,
    lost,
    recovered,
    repeated,
    running,
    settled,
    started,
    state_after,
    uuid,
)

DEATHS = (Death(rank=0, node="n", reason="SIGKILL"),)
RESUMED = RunResumed(author="bo")
LR = "set_learning_rate"


def refused(kind: type[Refused], words: str, request: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words):
        request()


def history(*commands: tuple[str, str, int]) -> list[Record]:
    """Commands 1, 2, ..: (kind, status, step), each settled before the next is accepted."""
    records: list[Record] = []
    for number, (kind, status, step) in enumerate(commands, start=1):
        body = {"factor": 0.5} if kind == LR else {}
        records += [accepted(number, kind, **body), settled(number, status, step)]
    return records


def replayed(state: RunState, *contained: int) -> Replay:
    return replay_after(resume_point(state).decided, {str(uuid(number)) for number in contained})


def numbers(repeats: tuple[Repeat, ...]) -> list[tuple[int, int]]:
    return [(each.command.uuid.int, each.step) for each in repeats]


# The resume point


def test_resume_point_of_an_untrained_run_is_the_beginning() -> None:
    point = resume_point(state_after())
    assert (point.generation, point.candidates, point.decided, point.reached_step) == (0, (), (), 0)


def test_candidates_are_the_newest_first_and_of_one_step_the_last_committed() -> None:
    records = committed(20), committed(10), committed(20, pinned=True).model_copy(update={"checkpoint": "again"})
    assert [each.checkpoint for each in resume_point(running(*records)).candidates] == [
        "again",
        "step-20-g1",
        "step-10-g1",
    ]


def test_candidates_are_bounded_and_leave_out_what_was_discarded() -> None:
    many = [committed(step) for step in range(1, MAX_CANDIDATES + 5)]
    gone = CheckpointDiscarded(checkpoint=many[-1].checkpoint, reason="old")
    candidates = resume_point(running(*many, gone)).candidates
    assert [each.step for each in candidates] == list(range(MAX_CANDIDATES + 3, 3, -1))


def test_candidate_beyond_a_later_start_is_left_out() -> None:
    """What the second generation settled at step 15 is not in the first one's checkpoint of step 20, and cannot be
    repeated there at its step."""
    state = running(committed(10), committed(20), lost(25), started(901, 2, step=10), committed(18, 2))
    assert [each.checkpoint for each in resume_point(state).candidates] == ["step-18-g2", "step-10-g1"]


def test_decided_is_in_the_order_of_settlement_and_leaves_out_what_is_pending() -> None:
    state = running(accepted(1), accepted(2), accepted(3), settled(3), settled(1, "rejected"))
    assert [each.command.uuid.int for each in resume_point(state).decided] == [3, 1]


def test_reached_step_is_the_highest_that_any_generation_made() -> None:
    state = running(lost(40), started(901, 2, step=10), accepted(1), settled(1, step=12, generation=2))
    assert (resume_point(state).reached_step, resume_point(state).generation) == (40, 2)


# What is repeated


def test_what_the_checkpoint_contains_is_not_repeated_and_what_came_after_it_is_at_its_step() -> None:
    replay = replayed(running(*history((LR, "applied", 5), (LR, "applied", 9), (LR, "applied", 9))), 1)
    assert numbers(replay.repeats) == [(2, 9), (3, 9)]
    assert replay.ledger == {uuid(1): settled(1, step=5)}


@pytest.mark.parametrize("status", ["rejected", "failed", "expired"])
def test_what_was_not_applied_stays_decided_and_is_not_repeated(status: str) -> None:
    replay = replayed(running(*history((LR, status, 5))))
    assert (replay.repeats, list(replay.ledger)) == ((), [uuid(1)])


@pytest.mark.parametrize("kind", ["save_checkpoint", "evaluate"])
def test_what_changes_nothing_in_the_training_is_not_repeated(kind: str) -> None:
    replay = replayed(running(*history((kind, "applied", 5))))
    assert (replay.repeats, list(replay.ledger)) == ((), [uuid(1)])


@pytest.mark.parametrize(
    ("contained", "paused", "repeats"),
    [((), False, [(1, 5), (2, 5), (3, 8)]), ((1,), True, [(2, 5), (3, 8)]), ((1, 2), False, [(3, 8)])],
)
def test_pause_that_the_checkpoint_contains_is_a_pause_and_the_rest_is_repeated(
    contained: tuple[int, ...], paused: bool, repeats: list[tuple[int, int]]
) -> None:
    state = running(*history(("pause", "applied", 5), ("resume", "applied", 5), ("pause", "applied", 8)))
    replay = replayed(state, *contained)
    assert (replay.paused, numbers(replay.repeats)) == (paused, repeats)
    assert replayed(state, 1, 2, 3).paused


def test_pause_that_was_rejected_pauses_nothing() -> None:
    assert not replayed(running(*history(("pause", "rejected", 5))), 1).paused


def test_stop_that_the_checkpoint_contains_is_a_stop_and_a_later_one_is_repeated() -> None:
    state = running(*history(("pause", "applied", 5), ("stop", "applied", 5)))
    assert (replayed(state, 1, 2).stopping, replayed(state, 1, 2).paused) == (True, False)
    assert numbers(replayed(state, 1).repeats) == [(2, 5)]


@pytest.mark.parametrize("contained", [(), (1,), (1, 2), (1, 2, 3)])
def test_stop_after_which_the_run_was_resumed_is_over_and_so_is_the_pause_that_it_ended(
    contained: tuple[int, ...],
) -> None:
    stopped = history((LR, "applied", 4), ("pause", "applied", 5), ("stop", "applied", 5))
    state = running(*stopped, RunClosed(ending="stopped"), RESUMED)
    replay = replayed(state, *contained)
    assert (replay.paused, replay.stopping) == (False, False)
    assert numbers(replay.repeats) == ([] if contained else [(1, 4)])
    assert (state.paused, state.stopping) == (False, False)


def test_stop_after_the_run_was_resumed_is_repeated() -> None:
    records = [*history(("stop", "applied", 5)), RESUMED, accepted(2, "stop"), settled(2, step=9)]
    assert numbers(replayed(running(*records)).repeats) == [(2, 9)]


def test_stop_that_was_rejected_before_the_run_was_resumed_ends_no_pause() -> None:
    state = running(*history(("pause", "applied", 5), ("stop", "rejected", 5)), lost(5), RESUMED)
    assert (numbers(replayed(state).repeats), replayed(state, 1).paused, state.paused) == ([(1, 5)], True, True)


def test_new_offer_waits_until_nothing_is_left_to_repeat() -> None:
    old, new = command(1, "pause"), command(2)
    replica = Replica(generation=2, repeats=(Repeat(old, 7),))
    assert propose(replica, (new,), 6) == ()
    assert propose(replica, (new,), 7) == (old,)
    replica.decide(old, settled(1, step=7))
    assert (replica.repeats, propose(replica, (new,), 7)) == ((), (new,))


def test_more_repeats_than_one_proposal_takes_are_all_due_at_their_step() -> None:
    repeats = tuple(Repeat(command(number), 7) for number in range(1, MAX_COMMANDS_PER_PROPOSAL + 2))
    replica = Replica(generation=2, repeats=repeats)
    first = propose(replica, (), 7)
    assert first == tuple(each.command for each in repeats[:-1])
    for asked in first:
        replica.decide(asked, settled(asked.uuid.int, step=7))
    assert replica.is_behind(7)
    assert not replica.is_behind(6)
    assert propose(replica, (), 7) == (repeats[-1].command,)


# The decisions around a loss


def repeatable() -> RunState:
    return running(accepted(1, LR, factor=0.5), settled(1), lost(12), started(901, 2))


def test_settle_of_what_an_earlier_generation_settled_is_a_repetition() -> None:
    again = settled(1, generation=2, after={"lr": [1.0]})
    assert decisions.settle(repeatable(), again) == [repeated(1, after={"lr": [1.0]})]


def test_settle_of_a_repetition_told_twice_records_it_once_and_of_the_next_generation_again() -> None:
    state = running(accepted(1), settled(1), lost(12), started(901, 2), repeated(1))
    assert decisions.settle(state, settled(1, generation=2)) == []
    again = decisions.settle(state, settled(1, generation=3))
    assert [r.generation for r in again if isinstance(r, CommandRepeated)] == [3]


def test_settle_of_a_repetition_that_came_out_otherwise_is_recorded_and_not_hidden() -> None:
    again = settled(1, "rejected", 11, generation=2, reason="no group")
    assert decisions.settle(repeatable(), again) == [repeated(1, step=11, status="rejected", reason="no group")]


def test_settle_by_the_same_generation_otherwise_than_before_is_a_conflict() -> None:
    state = running(accepted(1), settled(1))
    refused(Conflict, "already settled", partial(decisions.settle, state, settled(1, step=11)))
    refused(NotFound, "never accepted a command", partial(decisions.settle, state, settled(2, generation=2)))


def test_lose_generation_counts_the_farthest_step_and_no_negative_silence() -> None:
    state = running(accepted(1), settled(1, step=10))
    assert decisions.fail_generation(state, 1, 8, -1.0, DEATHS) == [
        GenerationLost(generation=1, step=10, silent_s=0.0, deaths=DEATHS)
    ]
    assert decisions.fail_generation(state, 1, 12, 2.5, DEATHS) == [
        GenerationLost(generation=1, step=12, silent_s=2.5, deaths=DEATHS)
    ]


def test_lose_generation_told_twice_or_before_any_start_records_nothing() -> None:
    assert decisions.fail_generation(running(lost(12)), 1, 12, 0.0, DEATHS) == []
    assert decisions.fail_generation(state_after(), 0, 0, 0.0, DEATHS) == []


def test_lose_generation_that_is_over_or_of_a_closed_run_is_refused() -> None:
    state = running(started(901, 2))
    refused(
        Conflict, "generation 1 is not the current one", partial(decisions.fail_generation, state, 1, 5, 0.0, DEATHS)
    )
    closed = running(RunClosed(ending="failed"))
    refused(RunEnded, "has failed", partial(decisions.fail_generation, closed, 1, 5, 0.0, DEATHS))


def test_generation_that_was_lost_is_not_listened_to_any_more() -> None:
    """Its successors may have been told the history already: what came now would never be repeated."""
    for state in (running(lost(12)), running(RESUMED)):
        refused(Conflict, "declared failed", partial(decisions.check_generation, state, 1))
        end = partial(decisions.end_generation, state, 1, "failed", 12, None)
        refused(Conflict, "declared failed", end)
    decisions.check_generation(running(lost(12), started(901, 2)), 2)


def test_recover_generation_is_recorded_once_after_a_loss_that_was_restarted() -> None:
    assert decisions.recover_generation(running(), recovered(1)) == []
    assert decisions.recover_generation(running(lost(12)), recovered(1)) == []
    assert decisions.recover_generation(running(lost(12), started(901, 2)), recovered(1)) == [recovered(1)]
    assert decisions.recover_generation(running(lost(12), started(901, 2), recovered(1)), recovered(1)) == []


def test_resume_run_reopens_what_stopped_or_failed_and_nothing_that_finished() -> None:
    for ending in ("stopped", "failed"):
        state = running(RunClosed.model_validate({"ending": ending}))
        assert decisions.resume_run(state, "bo") == [RESUMED]
    assert decisions.resume_run(running(), "bo") == [RESUMED]
    finished = running(RunClosed(ending="finished"))
    refused(Conflict, "cannot be resumed, only rolled back", partial(decisions.resume_run, finished, "bo"))
    refused(Conflict, "no journal", partial(decisions.resume_run, state_after(), "bo"))


def test_run_that_was_resumed_takes_commands_and_starts_again() -> None:
    state = running(accepted(1, "stop"), settled(1), RunClosed(ending="stopped"), RESUMED, started(901, 2))
    assert decisions.accept(state, command(2))
    assert state.status == "running"


def test_checkpoint_told_again_after_it_was_discarded_does_not_come_back() -> None:
    gone = CheckpointDiscarded(checkpoint="step-5-g1", reason="old")
    assert checkpoint_rules.commit_checkpoint(running(committed(5), gone), committed(5)) == []
    assert checkpoint_rules.commit_checkpoint(running(committed(5), gone), committed(6)) == [committed(6)]


def test_fail_checkpoint_is_recorded_unless_the_checkpoint_is_there() -> None:
    failed = CheckpointFailed(checkpoint="step-5-g1", step=5, generation=1, reason="full")
    assert checkpoint_rules.fail_checkpoint(running(), failed) == [failed]
    assert checkpoint_rules.fail_checkpoint(running(committed(5)), failed) == []


def test_settled_example_of_an_expired_command_is_no_repetition() -> None:
    """A command that expired when its run was closed is not taken up again when the run is resumed."""
    state = running(accepted(1, LR, factor=0.5), settled(1, "expired", None), RunClosed(ending="failed"), RESUMED)
    assert replayed(state).repeats == ()
    assert isinstance(replayed(state).ledger[uuid(1)], CommandSettled)
