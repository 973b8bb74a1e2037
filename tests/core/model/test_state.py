"""State: the fold of the records, and nothing else."""

from copy import deepcopy

import pytest

from control_plane.core.model.records import (
    CheckpointDiscarded,
    CheckpointFailed,
    Entry,
    GenerationEnded,
    Record,
    RunClosed,
    RunResumed,
    TermStarted,
)
from control_plane.core.model.state import RunState, evolve, fold
from tests.core.examples import (
    KNOBS,
    accepted,
    command,
    committed,
    created,
    every_record,
    lost,
    recovered,
    repeated,
    running,
    settled,
    started,
    uuid,
)

FAILED = GenerationEnded(generation=1, ending="failed", step=42, reason="rank 1 died")


def numbered(*records: Record) -> list[Entry]:
    return [Entry(seq=seq, time=f"t{seq}", record=record) for seq, record in enumerate(records, start=1)]


@pytest.mark.parametrize("seq", [1, 3, 5, 6, 400])
def test_evolve_refuses_a_gap_and_changes_nothing(seq: int) -> None:
    state = running()
    before = deepcopy(state)
    with pytest.raises(ValueError, match=f"record {seq} cannot follow record 3"):
        evolve(state, Entry(seq=seq, time="t", record=accepted(1)))
    assert state == before


def test_fold_of_every_record_type_is_the_same_live_and_replayed() -> None:
    entries = numbered(*every_record())
    live = RunState()
    for entry in entries:
        evolve(live, entry)
    replayed = fold([Entry.from_line(entry.line()) for entry in entries])
    assert replayed == live
    assert live.seq == len(entries)


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ((created(),), "waiting"),
        ((created(), started()), "running"),
        ((created(), started(), accepted(1, "pause")), "running"),
        ((created(), started(), accepted(1, "pause"), settled(1)), "paused"),
        ((created(), started(), accepted(1, "pause"), settled(1, "rejected")), "running"),
        ((created(), started(), accepted(1, "pause"), settled(1), accepted(2, "resume"), settled(2)), "running"),
        ((created(), started(), accepted(1, "pause"), settled(1), accepted(2, "stop"), settled(2)), "running"),
        ((created(), started(), GenerationEnded(generation=1, ending="finished", step=100)), "waiting"),
        ((created(), started(), accepted(1, "pause"), settled(1), FAILED), "recovering"),
        ((created(), started(), accepted(1, "pause"), settled(1), lost(42)), "recovering"),
        ((created(), started(), accepted(1, "pause"), settled(1), lost(42), started(901, 2)), "paused"),
        ((created(), started(), accepted(1, "pause"), settled(1), FAILED, started(901, 2)), "paused"),
        ((created(), started(), lost(42), RunClosed(ending="failed"), RunResumed(author="bo")), "waiting"),
        ((created(), started(), RunResumed(author="bo")), "waiting"),
        ((created(), started(), RunResumed(author="bo"), started(901, 2)), "running"),
        ((created(), RunClosed(ending="stopped"), RunResumed(author="bo")), "waiting"),
        ((created(), started(), FAILED, RunClosed(ending="failed")), "failed"),
        ((created(), RunClosed(ending="stopped")), "stopped"),
    ],
)
def test_status_follows_the_records(records: tuple[Record, ...], status: str) -> None:
    assert fold(numbered(*records)).status == status


def test_a_command_is_pending_until_it_is_settled_in_the_order_of_acceptance() -> None:
    state = running(accepted(1), accepted(2), accepted(3))
    assert state.pending_commands() == (command(1), command(2), command(3))
    state = running(accepted(1), accepted(2), accepted(3), settled(2, "rejected"))
    assert state.pending_commands() == (command(1), command(3))
    assert [state.commands[uuid(n)].status for n in (1, 2)] == ["accepted", "rejected"]
    assert (state.commands[uuid(2)].accepted_seq, state.commands[uuid(2)].settled_seq) == (5, 7)


def test_knobs_follow_applied_learning_rates_only() -> None:
    change = accepted(1, "set_learning_rate", value=1e-5)
    assert running(change, settled(1, "failed", after={"lr": [1e-5, 1e-5]})).knobs == KNOBS
    assert running(change, settled(1, after={"lr": [1e-5, 1e-5]})).knobs == KNOBS | {"lr": [1e-5, 1e-5]}
    assert running(accepted(1), settled(1, after={"eval_loss": 2.0})).knobs == KNOBS


def test_a_new_generation_begins_with_its_own_knobs() -> None:
    change = accepted(1, "set_learning_rate", value=1e-5)
    state = running(change, settled(1, after={"lr": [1e-5, 1e-5]}), FAILED, started(901, 2))
    assert state.knobs == KNOBS
    assert (state.generation_number, state.step) == (2, 0)


def test_stop_applied_means_stopping_until_somebody_has_the_run_go_on() -> None:
    stopped = (accepted(1, "stop"), settled(1))
    assert running(*stopped, lost(10), started(901, 2)).stopping
    assert not running(*stopped, RunClosed(ending="stopped"), RunResumed(author="bo"), started(901, 2)).stopping


def test_pause_outlives_a_loss_the_end_of_the_trainers_and_the_closing_of_the_run() -> None:
    paused = (accepted(1, "pause"), settled(1))
    closed = (lost(10), RunClosed(ending="failed"), RunResumed(author="bo"), started(901, 2))
    assert running(*paused, *closed).paused
    assert running(*paused, GenerationEnded(generation=1, ending="stopped", step=10), started(901, 2)).paused


def test_repetition_moves_knobs_and_step_and_leaves_the_settlement() -> None:
    change = (accepted(1, "set_learning_rate", value=1e-5), settled(1, after={"lr": [1e-5, 1e-5]}), lost(12))
    state = running(*change, started(901, 2), repeated(1, after={"lr": [1e-5, 1e-5]}))
    assert (state.knobs["lr"], state.step) == ([1e-5, 1e-5], 10)
    assert state.commands[uuid(1)].settled == settled(1, after={"lr": [1e-5, 1e-5]})
    assert state.commands[uuid(1)].repeated == repeated(1, after={"lr": [1e-5, 1e-5]})
    refused = running(*change, started(901, 2), repeated(1, status="rejected", reason="no"))
    assert (refused.knobs, refused.step) == (KNOBS, 0)


def test_loss_is_followed_by_its_start_and_its_recovery() -> None:
    state = running(lost(12))
    assert (state.has_failed, state.listens) == (True, False)
    begun = running(lost(12), started(901, 2))
    assert (begun.has_failed, begun.listens, begun.failures[0].restarted) == (False, True, started(901, 2))
    back = running(lost(12), started(901, 2), recovered(1))
    assert back.failures[0].recovered == recovered(1)
    assert (back.reached_step, back.step) == (12, 0)


def test_generation_is_not_listened_to_once_somebody_has_the_run_go_on() -> None:
    assert not running(RunResumed(author="bo")).listens
    assert running(RunResumed(author="bo"), started(901, 2)).listens


def test_checkpoint_beyond_a_later_start_is_abandoned_and_a_discarded_one_is_gone() -> None:
    state = running(committed(10), committed(20), CheckpointDiscarded(checkpoint="step-10-g1", reason="old"))
    assert ([each.step for each in state.checkpoints.existing], state.checkpoints.abandoned) == ([20], {})
    state = running(committed(10), committed(20), lost(25), started(901, 2, step=10))
    assert set(state.checkpoints.abandoned) == {"step-20-g1"}
    assert [each.step for each in state.checkpoints.existing] == [10, 20]


def test_checkpoint_that_failed_changes_nothing_but_the_place_in_the_journal() -> None:
    state, before = running(CheckpointFailed(checkpoint="c", step=5, generation=1, reason="full")), running()
    before.seq = state.seq
    assert state == before


def test_step_never_moves_back_by_a_settlement() -> None:
    assert running(accepted(1), accepted(2), settled(1, step=20), settled(2, step=10)).step == 20


def test_terms_change_nothing_but_the_term() -> None:
    entries = numbered(created(), started(), accepted(1))
    one, other = fold(entries), fold(entries)
    evolve(other, Entry(seq=4, time="t", record=TermStarted(term=2, recovered=3)))
    other.seq, other.term = one.seq, one.term
    assert other == one


def test_fold_does_not_write_into_the_records() -> None:
    entries = numbered(*every_record())
    before = [entry.line() for entry in entries]
    fold(entries)
    assert [entry.line() for entry in entries] == before
