"""The gate, as a table: what a proposal becomes, whoever made it."""

import math
from dataclasses import replace

import pytest

from control_plane.agent.policy import (
    MAX_EXPLANATION_CHARS,
    AgentAction,
    AgentBounds,
    Decision,
    decide,
    explain,
)
from control_plane.core.model.commands import MAX_REASON_CHARS, SetLearningRate
from control_plane.core.model.errors import Invalid
from tests.agent.simulated import observed

SEEN = observed([3.0] * 100, lr=1e-3)
BOUNDS = AgentBounds(min_lr=1e-5, max_lr=1e-2, cooldown_steps=20, max_changes=3, max_age_steps=50)


@pytest.mark.parametrize(
    ("action", "now", "factor", "words"),
    [
        (AgentAction.KEEP, {}, None, "kept"),
        (AgentAction.DOUBLE, {}, 2.0, "lr x 2"),
        (AgentAction.HALVE, {}, 0.5, "lr x 0.5"),
        (AgentAction.DOUBLE, {"lr": (5e-3,)}, 2.0, "lr x 2"),
        (AgentAction.DOUBLE, {"lr": (5.1e-3,)}, None, "above the autopilot's bound of 0.01"),
        (AgentAction.DOUBLE, {"lr": (1e-3, 9e-3)}, None, "above"),
        (AgentAction.HALVE, {"lr": (1.9e-5,)}, None, "below the autopilot's bound of 1e-05"),
        (AgentAction.HALVE, {"lr": (1e-3, 1.5e-5)}, None, "below"),
        (AgentAction.HALVE, {"lr": (5e-2,)}, 0.5, "lr x 0.5"),  # from above the bounds, down is the way
        (AgentAction.DOUBLE, {"lr": (1e-6,)}, 2.0, "lr x 2"),  # from below them, up
        (AgentAction.DOUBLE, {"lr": (0.0, 1e-3)}, 2.0, "lr x 2"),  # a frozen group binds nothing
        (AgentAction.DOUBLE, {"lr": (0.0,)}, None, "positive learning rate"),
        (AgentAction.DOUBLE, {"lr": ()}, None, "positive learning rate"),
        (AgentAction.HALVE, {"lr": (math.nan,)}, None, "positive learning rate"),
        (AgentAction.HALVE, {"lr": (math.inf,)}, None, "positive learning rate"),
        (AgentAction.HALVE, {"lr": (-1e-3,)}, None, "positive learning rate"),
        (AgentAction.HALVE, {"pending": True}, None, "still pending"),
        (AgentAction.HALVE, {"changes": 3}, None, "all of its 3 changes"),
        (AgentAction.HALVE, {"generation": 1}, None, "restarted or rolled back"),
        (AgentAction.HALVE, {"step": 99}, None, "restarted or rolled back"),
        (AgentAction.HALVE, {"step": 151}, None, "the run is at step 151"),
        (AgentAction.HALVE, {"changed_at": 90}, None, "has changed since it was observed"),
    ],
)
def test_decide_each_proposal_becomes_one_factor_or_a_sentence(
    action: AgentAction, now: dict[str, object], factor: float | None, words: str
) -> None:
    ruling = decide(Decision(action, "because"), SEEN, replace(SEEN, **now), BOUNDS)  # type: ignore[arg-type]
    expected = None if factor is None else SetLearningRate(factor=factor, schedule="keep")
    assert ruling.intent == expected
    assert words in ruling.sentence


@pytest.mark.parametrize(("since", "allowed"), [(0, False), (19, False), (20, True)])
def test_decide_within_the_cooldown_of_anyones_change_refuses(since: int, allowed: bool) -> None:
    seen = replace(SEEN, changed_at=SEEN.step - since)
    ruling = decide(Decision(AgentAction.HALVE, ""), seen, seen, BOUNDS)
    assert (ruling.intent is not None) == allowed
    assert allowed or f"{since} steps ago" in ruling.sentence


@pytest.mark.parametrize(
    "wrong",
    [{"min_lr": 0.0}, {"min_lr": 1.0}, {"max_lr": 11.0}, {"max_lr": math.nan}, {"cooldown_steps": -1}],
)
def test_bounds_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Invalid):
        AgentBounds(**wrong)  # type: ignore[arg-type]


def test_explain_hostile_words_become_one_short_printable_line() -> None:
    words = "\x1b[2J\x1b]0;owned\x07 line\r\nline \u202e evil" + "x" * 10_000
    reason = explain("model", words)
    assert reason.isprintable()
    assert reason.startswith("autopilot (model): ")
    assert len(reason) <= MAX_EXPLANATION_CHARS + len("autopilot (model): ") <= MAX_REASON_CHARS


def test_gate_does_not_bring_a_run_further_down_than_max_drop() -> None:
    at_the_floor = observed([3.0], lr=2e-2 / 16, peak_lr=2e-2)
    above_it = observed([3.0], lr=2e-2 / 8, peak_lr=2e-2)
    halve = Decision(AgentAction.HALVE, "flat")
    refused = decide(halve, at_the_floor, at_the_floor, AgentBounds())
    assert refused.intent is None
    assert "16th of the highest rate seen" in refused.sentence
    assert decide(halve, above_it, above_it, AgentBounds()).intent is not None


@pytest.mark.parametrize("max_drop", [0.5, float("nan"), float("inf"), -1.0])
def test_bounds_refuse_a_max_drop_that_makes_no_sense(max_drop: float) -> None:
    with pytest.raises(Invalid, match="max_drop"):
        AgentBounds(max_drop=max_drop)
