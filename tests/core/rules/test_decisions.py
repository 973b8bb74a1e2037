"""Decisions: each rule, and that a refusal leaves everything as it was."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest

from control_plane.core.model.commands import Command, Stop
from control_plane.core.model.errors import Conflict, Invalid, NotFound, Overloaded, Refused, RunEnded
from control_plane.core.model.records import (
    CheckpointCommitted,
    CommandAccepted,
    CommandSettled,
    GenerationEnded,
    GenerationStarted,
    RunClosed,
    RunCreated,
    TermStarted,
)
from control_plane.core.model.state import RunState
from control_plane.core.rules import checkpoint_rules, decisions
from control_plane.core.rules.admission import MAX_PENDING_COMMANDS, find_group
from control_plane.core.rules.decisions import GenerationStart
from tests.core.examples import KNOBS, accepted, command, created, running, settled, start, started, state_after, uuid

CLOSED = RunClosed(ending="finished")
ENDED = GenerationEnded(generation=1, ending="finished", step=100)


def assert_refused(kind: type[Refused], state: RunState, request: Callable[[RunState], object], words: str) -> None:
    """The request is refused with this class and these words, and the state is what it was."""
    before = deepcopy(state)
    with pytest.raises(kind, match=words) as caught:
        request(state)
    assert type(caught.value) is kind
    assert state == before


def test_create_on_an_empty_journal_records_the_run() -> None:
    assert decisions.create(RunState(), created()) == [created()]


def test_create_again_records_nothing() -> None:
    assert decisions.create(running(), created()) == []


@pytest.mark.parametrize("other", [created(run="run-2"), created(config_sha256="beef")], ids=["run", "config"])
def test_create_over_another_run_is_a_conflict(other: RunCreated) -> None:
    assert_refused(Conflict, running(), lambda state: decisions.create(state, other), "another configuration")


def test_start_term_counts_what_was_found() -> None:
    assert decisions.start_term(running(), 4) == [TermStarted(term=4, recovered=3)]


def test_accept_records_the_command() -> None:
    assert decisions.accept(running(), command(1)) == [CommandAccepted(command=command(1))]


def test_accept_before_the_trainers_have_started_records_the_command() -> None:
    asked = command(1, "set_learning_rate", value=1e-4, group="who knows yet")
    assert decisions.accept(state_after(created()), asked) == [CommandAccepted(command=asked)]


@pytest.mark.parametrize(
    "later", [(), (settled(1),), (settled(1), ENDED, CLOSED)], ids=["pending", "settled", "closed"]
)
def test_accept_of_a_known_command_records_nothing_whatever_came_of_it(later: tuple) -> None:
    assert decisions.accept(running(accepted(1), *later), command(1)) == []


def test_accept_of_a_known_uuid_for_another_command_is_a_conflict() -> None:
    state = running(accepted(1))
    assert_refused(Conflict, state, lambda s: decisions.accept(s, command(1, "pause")), "is already the command")


def test_accept_after_the_run_closed_is_refused() -> None:
    assert_refused(RunEnded, running(CLOSED), lambda s: decisions.accept(s, command(1)), "has finished")


@pytest.mark.parametrize("records", [(accepted(1, "stop"),), (accepted(1, "stop"), settled(1))], ids=["asked", "done"])
def test_accept_after_a_stop_is_refused(records: tuple) -> None:
    assert_refused(RunEnded, running(*records), lambda s: decisions.accept(s, command(2)), "is stopping")


def test_accept_while_a_stop_is_planned_for_later_records_the_command() -> None:
    """A run that is paused before its planned stop can be resumed, or stopped at once."""
    state = running(accepted(1, "pause"), settled(1), accepted(2, "stop", not_before_step=50))
    for kind in ("resume", "stop", "evaluate"):
        assert decisions.accept(state, command(3, kind)) == [CommandAccepted(command=command(3, kind))]


def test_accept_after_a_stop_that_was_rejected_records_the_command() -> None:
    state = running(accepted(1, "stop"), settled(1, "rejected"))
    assert decisions.accept(state, command(2)) == [CommandAccepted(command=command(2))]


def test_accept_over_the_limit_is_refused_and_a_settlement_makes_room() -> None:
    full = [
        CommandAccepted(command=command(number).model_copy(update={"author": f"ann-{number % 3}"}))
        for number in range(MAX_PENDING_COMMANDS)
    ]
    assert_refused(Overloaded, running(*full), lambda s: decisions.accept(s, command(999)), "try again later")
    assert decisions.accept(running(*full, settled(5)), command(999))


@pytest.mark.parametrize("group", [0, 1, "decay", "no_decay", "1"])
def test_accept_of_a_known_group_records_the_command(group: int | str) -> None:
    assert decisions.accept(running(), command(1, "set_learning_rate", factor=0.5, group=group))


@pytest.mark.parametrize("group", [2, 10**30, "embedding", "2", "-1", "9" * 80])
def test_accept_of_an_unknown_group_is_refused(group: int | str) -> None:
    asked = command(1, "set_learning_rate", factor=0.5, group=group)
    assert_refused(NotFound, running(), lambda s: decisions.accept(s, asked), r"this run has 0 \(decay\), 1 \(no_decay")


def test_accept_counts_groups_by_learning_rates_when_they_have_no_names() -> None:
    nameless = started().model_copy(update={"knobs": {"lr": [1.0, 2.0]}})
    state = state_after(created(), nameless)
    assert decisions.accept(state, command(1, "set_learning_rate", factor=0.5, group=1))
    asked = command(1, "set_learning_rate", factor=0.5, group=2)
    assert_refused(NotFound, state, lambda s: decisions.accept(s, asked), "no parameter group 2")


@pytest.mark.parametrize(
    ("records", "kind", "words"),
    [
        ((accepted(1, "pause"),), "pause", "already paused, or a pause is pending"),
        ((accepted(1, "pause"), settled(1)), "pause", "already paused"),
        ((), "resume", "is not paused"),
        ((accepted(1, "pause"), settled(1), accepted(2, "resume")), "resume", "is not paused"),
    ],
)
def test_accept_of_a_pause_or_resume_that_changes_nothing_is_a_conflict(records: tuple, kind: str, words: str) -> None:
    assert_refused(Conflict, running(*records), lambda s: decisions.accept(s, command(9, kind)), words)


def test_accept_of_a_resume_while_the_pause_is_on_its_way_records_it() -> None:
    assert decisions.accept(running(accepted(1, "pause")), command(2, "resume"))


@pytest.mark.parametrize("step", [None, 0, 100])
def test_accept_of_a_step_within_the_run_records_the_command(step: int | None) -> None:
    assert decisions.accept(running(), command(1, not_before_step=step))


def test_accept_of_a_step_after_the_end_is_refused() -> None:
    assert_refused(
        Invalid, running(), lambda s: decisions.accept(s, command(1, not_before_step=101)), "ends at step 100"
    )


def test_find_group_prefers_a_name_to_an_index() -> None:
    assert find_group(["1", "0"], "0") == 1
    assert find_group(["1", "0"], 0) == 0
    assert find_group([], "0") is None


def test_start_generation_counts_from_one() -> None:
    records = decisions.start_generation(state_after(created()), start(step=7))
    assert [(r.generation, r.step, r.world_size) for r in records if isinstance(r, GenerationStarted)] == [(1, 7, 2)]
    again = decisions.start_generation(running(ENDED), start(901))
    assert [r.generation for r in again if isinstance(r, GenerationStarted)] == [2]


def test_start_generation_announced_again_records_nothing() -> None:
    assert decisions.start_generation(running(), start(900)) == []
    assert decisions.start_generation(running(ENDED, CLOSED), start(900)) == []


def test_start_generation_of_an_earlier_start_is_a_conflict() -> None:
    """A late repetition of the first announcement must not push the living generation aside."""
    state = running(started(901, generation=2))
    assert_refused(
        Conflict, state, lambda s: decisions.start_generation(s, start(900)), "generation 1 is not the current one"
    )


def test_start_generation_of_a_closed_run_is_refused() -> None:
    assert_refused(RunEnded, running(CLOSED), lambda s: decisions.start_generation(s, start(901)), "cannot start again")


def test_check_generation_listens_to_the_current_one_only() -> None:
    state = running(started(901, generation=2))
    decisions.check_generation(state, 2)
    for stale in (0, 1, 3):
        assert_refused(
            Conflict, state, partial(decisions.check_generation, generation=stale), "is not the current one .2."
        )


def test_settle_records_the_outcome_once() -> None:
    assert decisions.settle(running(accepted(1)), settled(1)) == [settled(1)]
    assert decisions.settle(running(accepted(1), settled(1)), settled(1)) == []


def test_settle_otherwise_than_before_is_a_conflict() -> None:
    state = running(accepted(1), settled(1))
    assert_refused(
        Conflict, state, lambda s: decisions.settle(s, settled(1, "rejected")), "settled as applied at step 10"
    )
    assert_refused(Conflict, state, lambda s: decisions.settle(s, settled(1, step=11)), "settled as applied at step 10")


def test_settle_of_an_unknown_command_is_refused() -> None:
    assert_refused(NotFound, running(), lambda s: decisions.settle(s, settled(1)), "never accepted a command")


def test_commit_checkpoint_records_it_once() -> None:
    checkpoint = CheckpointCommitted(checkpoint="c1", step=5, generation=1, path="checkpoints/c1")
    assert checkpoint_rules.commit_checkpoint(running(), checkpoint) == [checkpoint]
    assert checkpoint_rules.commit_checkpoint(running(checkpoint), checkpoint) == []


def test_end_generation_records_it_once_and_leaves_commands_pending() -> None:
    state = running(accepted(1))
    assert decisions.end_generation(state, 1, "finished", 100, None) == [ENDED]
    assert decisions.end_generation(running(accepted(1), ENDED), 1, "finished", 100, None) == []


def test_end_generation_of_an_earlier_one_is_a_conflict() -> None:
    state = running(started(901, generation=2))
    assert_refused(
        Conflict,
        state,
        lambda s: decisions.end_generation(s, 1, "failed", 3, "x"),
        "generation 1 is not the current one",
    )


def test_close_run_gives_every_pending_command_an_end() -> None:
    records = decisions.close_run(running(accepted(1), accepted(2), settled(1), accepted(3)), "stopped", "asked")
    assert [(r.uuid, r.status) for r in records if isinstance(r, CommandSettled)] == [
        (uuid(2), "expired"),
        (uuid(3), "expired"),
    ]
    assert records[-1] == RunClosed(ending="stopped", reason="asked")
    assert running(accepted(1), accepted(2), settled(1), accepted(3), *records).pending == {}


def test_close_run_again_records_nothing() -> None:
    assert decisions.close_run(running(CLOSED), "failed", "again") == []


def test_decisions_never_change_the_state() -> None:
    state = running(accepted(1), accepted(2, "pause"))
    before = deepcopy(state)
    decisions.accept(state, command(3))
    decisions.settle(state, settled(1))
    decisions.start_generation(state, start(901))
    decisions.end_generation(state, 1, "failed", 3, "x")
    decisions.close_run(state, "failed", "x")
    assert state == before


def test_examples_are_what_the_decisions_take() -> None:
    assert isinstance(start(), GenerationStart)
    assert isinstance(command(1, "stop"), Command)
    assert isinstance(command(1, "stop").intent, Stop)
    assert running().knobs == KNOBS
