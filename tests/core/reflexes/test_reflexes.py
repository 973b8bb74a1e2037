"""Reflexes: one command for one alert, within budget and cool-down, from the journal alone."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from control_plane.core.model.commands import Command
from control_plane.core.model.health import AlertRaised, Evidence
from control_plane.core.model.intents import Rollback, SetKnobs
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    BranchStarted,
    CommandAccepted,
    CommandSettled,
    Entry,
    Parent,
    Record,
    RunCreated,
    TermStarted,
)
from control_plane.core.model.reflexes import REFLEXES, Reflex
from control_plane.core.model.state import RunState, evolve, fold
from control_plane.core.rules import decisions
from control_plane.core.rules.branch_rules import Origin
from control_plane.core.rules.reflexes import raise_alert, steps_since, uuid_of
from tests.core.examples import KNOBS, alert, committed, created, started, state_after, uuid

RESCUE = ["rollback trusted", "lr*=0.5", "skip_samples 200"]


def run_with(reflexes: dict[str, Any], *records: Record, knobs: dict[str, Any] = KNOBS) -> RunState:
    """A running run whose config has these reflexes."""
    first = created().model_copy(update={"reflexes": REFLEXES.validate_python(reflexes)})
    return state_after(first, TermStarted(term=1, recovered=1), started(knobs=knobs, total_steps=1000), *records)


def append(state: RunState, records: list[Record]) -> list[Entry]:
    """What the control server does with records."""
    entries = [Entry(seq=state.seq + at, time="t", record=record) for at, record in enumerate(records, start=1)]
    for entry in entries:
        evolve(state, entry)
    return entries


def commands_in(records: list[Record]) -> list[Command]:
    return [record.command for record in records if isinstance(record, CommandAccepted)]


def declined(records: list[Record]) -> str:
    (record,) = records
    assert isinstance(record, AlertRaised)
    return record.declined


def test_rescue_is_one_rollback_to_the_newest_trusted_checkpoint_before_the_onset() -> None:
    checkpoints = [committed(step, health=health) for step, health in ((4, "trusted"), (8, "trusted"), (10, "unknown"))]
    state = run_with({"non_finite": RESCUE}, *checkpoints, committed(11, health="trusted"))
    records = raise_alert(state, alert("non_finite", step=12, onset_step=11, level="critical"), 1)
    assert isinstance(records[0], AlertRaised)
    assert (records[0].reflex, records[0].declined) == ("non_finite", "")
    (command,) = commands_in(records)
    assert command.author == "reflex:non_finite"
    assert isinstance(command.intent, Rollback)
    assert command.intent.checkpoint == "step-8-g1", "step 11 is the onset: that checkpoint holds the fault"
    assert [each.describe() for each in command.intent.first] == ["lr x 0.5", "skip 200 samples"]


def test_run_without_a_trusted_checkpoint_is_left_alone_and_told_so() -> None:
    state = run_with({"non_finite": RESCUE}, committed(8, health="unknown"), committed(11, health="trusted"))
    reason = declined(raise_alert(state, alert("non_finite", step=12, onset_step=11), 1))
    assert reason.startswith("branch main of run run-1 has no trusted checkpoint")
    assert "step-11-g1 (suspect), step-8-g1 (unknown)" in reason


def test_uuid_follows_from_the_alert_and_tells_runs_and_commands_apart() -> None:
    state, other = run_with({}), state_after(created("run-2"))
    first, second = alert(), alert(onset_step=12)
    assert uuid_of(state, first) == uuid_of(state, first.model_copy(update={"sentence": "said otherwise", "step": 13}))
    assert len({uuid_of(state, first), uuid_of(state, second), uuid_of(other, first), uuid_of(state, first, "x")}) == 4


def spike(value: float = 9.0, step: int = 12) -> Any:
    """A spike of the gradients' norm, z = (value - 1) / 0.5."""
    evidence = Evidence(sign="grad_norm", value=value, threshold=2.25, window_steps=128, mean=1.0, deviation=0.5)
    return alert("gradient_spike", step=step, onset_step=step, evidence=(evidence,))


def test_clip_is_the_formula_of_zclip_and_is_put_back() -> None:
    state = run_with({"gradient_spike": "clip"}, knobs=KNOBS | {"gradient_clipping": 5.0})
    down, back = commands_in(raise_alert(state, spike(), 1))
    assert isinstance(down.intent, SetKnobs)
    assert isinstance(back.intent, SetKnobs)
    z = (9.0 - 1.0) / 0.5
    assert down.intent.changes[0].value == pytest.approx(1.0 + 2.5 * 0.5 / (z / 2.5))
    assert (back.intent.changes[0].value, back.not_before_step) == (5.0, 12 + 200)
    assert (down.not_before_step, down.uuid != back.uuid) == (None, True)
    (alone,) = commands_in(raise_alert(state, spike(step=900), 1))
    assert alone.not_before_step is None, "the run ends before the value would be put back"


@pytest.mark.parametrize(
    ("knobs", "value", "reason"),
    [
        ({}, 9.0, "the run has no knob gradient_clipping"),
        ({"gradient_clipping": 0.5}, 9.0, "gradients are clipped to 0.5 already, below 1.19531"),
        ({"gradient_clipping": 5.0}, math.nan, "the alert names no gradient norm above its mean"),
        ({"gradient_clipping": 5.0}, 0.5, "the alert names no gradient norm above its mean"),
    ],
)
def test_clip_that_would_change_nothing_is_declined(knobs: dict[str, Any], value: float, reason: str) -> None:
    state = run_with({"gradient_spike": "clip"}, knobs=KNOBS | knobs)
    assert declined(raise_alert(state, spike(value), 1)) == reason


def test_save_first_comes_before_the_command_in_the_same_write() -> None:
    state = run_with({"loss_spike": {"do": "lr*=0.5", "save_first": True}})
    assert [each.intent.kind for each in commands_in(raise_alert(state, alert(), 1))] == [
        "save_checkpoint",
        "set_learning_rate",
    ]


def test_critical_answers_only_critical_alerts_of_other_kinds() -> None:
    state = run_with({"critical": "pause", "loss_spike": "lr*=0.5"})
    for kind, level, author in (
        ("dead_units", "critical", "reflex:critical"),
        ("loss_spike", "critical", "reflex:loss_spike"),
        ("dead_units", "warning", None),
    ):
        authors = [each.author for each in commands_in(raise_alert(state, alert(kind, level=level), 1))]
        assert authors == ([author] if author else [])


def test_limits_of_the_run_hold_for_reflexes() -> None:
    state = run_with({"loss_spike": "lr*=0.01"})
    state.limits = {"lr": Limit(max_factor=2.0)}
    assert "this run allows at most 2" in declined(raise_alert(state, alert(), 1))


def test_second_alert_waits_while_a_reflex_is_acting() -> None:
    state = run_with({"loss_spike": "lr*=0.5", "gradient_spike": "lr*=0.5"})
    append(state, raise_alert(state, alert(), 1))
    assert declined(raise_alert(state, alert("gradient_spike"), 1)) == "reflex:loss_spike is acting already"


def settle_all(state: RunState, step: int) -> None:
    """The ranks apply what is due."""
    for each in state.pending_commands():
        outcome = CommandSettled(uuid=each.uuid, status="applied", step=step, generation=1, after=dict(KNOBS))
        append(state, [outcome])


def test_cool_down_counts_the_steps_of_the_branch_that_is_trained() -> None:
    state = run_with({"loss_spike": {"do": "lr*=0.5", "cool_down_steps": 50}}, committed(8, health="trusted"))
    append(state, raise_alert(state, first := alert(step=100, onset_step=99), 1))
    settle_all(state, 101)
    append(state, [BranchStarted(branch="b", parent="main", checkpoint="step-8-g1", step=8, rollback=uuid(1))])
    append(state, [started(901, 2, step=8, branch="b")])
    soon, later = (alert(step=step, onset_step=step, branch="b") for step in (50, 58))
    assert steps_since(state, first, soon) == 42
    assert declined(raise_alert(state, soon, 2)) == "it acted 42 steps ago and cools down for 50"
    assert commands_in(raise_alert(state, later, 2)) != []


def test_alert_of_a_branch_that_was_left_is_not_answered() -> None:
    state = run_with({"loss_spike": "lr*=0.5"}, committed(8, health="trusted"))
    append(state, [BranchStarted(branch="b", parent="main", checkpoint="step-8-g1", step=8, rollback=uuid(1))])
    assert declined(raise_alert(state, alert(), 1)) == "the run is no longer trained on branch main"


def test_replay_has_no_reflexes_of_its_own_and_a_fork_has() -> None:
    first = created().model_copy(update={"reflexes": REFLEXES.validate_python({"loss_spike": "pause"})})
    for kind, kept in (("replay", 0), ("fork", 1)):
        record = decisions.create(RunState(), first, Origin(parent=Parent(kind=kind, run="other")))[0]  # type: ignore[arg-type]
        assert isinstance(record, RunCreated)
        assert len(record.reflexes) == kept


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("explode", "no action of a reflex"),
        (["pause", "rollback trusted"], "comes first"),
        (["rollback trusted", "pause"], "cannot follow"),
        (["pause", "stop"], "a reflex is one command"),
        ("lr*=soon", "no number"),
        ("lr=1e4", "less than or equal to 10"),
        ("lr*=0", "greater than or equal to 0.001"),
        ({"do": "pause", "budget": 0}, "greater than or equal to 1"),
        ({"do": "pause", "often": 3}, "Extra inputs"),
        ([], "at least 1"),
    ],
)
def test_reflex_that_cannot_be_is_refused_where_the_config_is_read(given: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Reflex.model_validate(given)


def test_unknown_kind_of_alert_is_refused() -> None:
    with pytest.raises(ValidationError, match="loss_spikes"):
        REFLEXES.validate_python({"loss_spikes": "pause"})


ALERTS = st.tuples(st.sampled_from(["loss_spike", "gradient_spike"]), st.integers(0, 6), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(st.lists(ALERTS, max_size=25), st.integers(1, 4), st.integers(0, 40), st.integers(0, 2**32))
def test_budget_and_cool_down_hold_for_every_history_and_repetition_changes_nothing(
    sequence: list[tuple[str, int, int]], budget: int, cool_down: int, seed: int
) -> None:
    reflex = {"do": "lr*=0.5", "budget": budget, "cool_down_steps": cool_down}
    state = run_with({"loss_spike": reflex, "gradient_spike": reflex})
    entries: list[Entry] = []
    acted: dict[str, list[int]] = {"loss_spike": [], "gradient_spike": []}
    known, step = list[Any](), 0
    for kind, gap, repeats in sequence:
        step += 7 * gap
        known.append(alert(kind, step=step, onset_step=step))
        records = raise_alert(state, known[-1], 1)
        entries += append(state, records)
        acted[kind] += [step for _ in commands_in(records)]
        for again in range(repeats):  # reports are repeated until they are confirmed, and by recovered runs
            assert raise_alert(state, known[(seed + again) % len(known)], 1) == []
        if seed % 2:
            settle_all(state, step)
    for steps in acted.values():
        assert len(steps) <= budget
        assert all(after - before >= cool_down for before, after in pairwise(steps))
    keys = [entry.record.alert.key for entry in entries if isinstance(entry.record, AlertRaised)]
    assert len(keys) == len(set(keys)) == len({each.key for each in known})


def test_fold_of_the_journal_decides_as_the_living_server_did() -> None:
    records = [
        created().model_copy(
            update={"reflexes": REFLEXES.validate_python({"loss_spike": {"do": "pause", "budget": 1}})}
        ),
        TermStarted(term=1, recovered=1),
        started(),
    ]
    state = state_after(*records)
    answer = raise_alert(state, alert(), 1)
    again = fold([Entry(seq=at, time="t", record=each) for at, each in enumerate([*records, *answer], start=1)])
    assert "its budget" in declined(raise_alert(again, alert(step=400, onset_step=400), 1)) or again.pending
    settle_all(again, 13)
    assert declined(raise_alert(again, alert(step=400, onset_step=400), 1)) == (
        "it has acted 1 times in this run, its budget"
    )
