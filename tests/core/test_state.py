"""State: the fold of the records, and nothing else."""

from copy import deepcopy

import pytest

from control_plane.core.records import Entry, GenerationEnded, Record, RunClosed, TermStarted
from control_plane.core.state import RunState, evolve, fold
from tests.core.examples import KNOBS, accepted, command, created, every_record, running, settled, started, uuid

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
        ((created(), started(), accepted(1, "pause"), settled(1), FAILED), "waiting"),
        ((created(), started(), accepted(1, "pause"), settled(1), FAILED, started(901, 2)), "running"),
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


def test_stop_applied_means_stopping_until_the_next_generation() -> None:
    assert running(accepted(1, "stop"), settled(1)).stopping
    assert not running(accepted(1, "stop"), settled(1), FAILED, started(901, 2)).stopping


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
