"""What an agent may do alone: the risk of a proposed command, by its result on the run's live values."""

from typing import Any

import pytest

from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.rules.agent.risk import risk_of
from tests.core.examples import intent

LIVE: dict[str, Any] = {"lr": [1e-3, 2e-3], "gradient_clipping": 1.0, "betas": [0.9, 0.999], "flag": False, "odd": "x"}
GRANTS = {
    "knobs": {
        "gradient_clipping": {"max_factor": 2, "min": 0.25, "max": 4},
        "betas": {"max_factor": 1.1},
        "flag": {},
        "odd": {},
        "gone": {},
    },
    "actions": ["reshuffle"],
}


def risk(kind: str, settings: dict[str, Any] | None = None, **body: Any) -> str:
    """Return the risk of an intent, with the grants above."""
    return risk_of(intent(kind, **body), AgentSettings.model_validate({"grants": GRANTS} | (settings or {})), LIVE)


def change(knob: str, **change: Any) -> str:
    """Return the risk of a change of one knob."""
    return risk("set_knobs", changes=[{"knob": knob, **change}])


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 2.0])
def test_rate_by_a_factor_within_two_is_of_low_risk(factor: float) -> None:
    assert risk("set_learning_rate", factor=factor) == "low"


@pytest.mark.parametrize("factor", [0.49, 2.01, 1000.0, 0.001])
def test_rate_by_a_larger_factor_is_of_high_risk(factor: float) -> None:
    assert risk("set_learning_rate", factor=factor) == "high"


def test_rate_to_a_value_counts_by_the_factor_of_every_group() -> None:
    assert risk("set_learning_rate", value=1.5e-3) == "low"
    assert risk("set_learning_rate", value=2.5e-3) == "high", "group 0 has 1e-3"
    assert risk("set_learning_rate", value=0.9e-3) == "high", "group 1 has 2e-3"


def test_rate_may_not_leave_the_settings_bounds_but_may_come_back() -> None:
    assert risk("set_learning_rate", {"max_lr": 3e-3}, factor=2.0) == "high", "group 1 would be 4e-3"
    assert risk("set_learning_rate", {"min_lr": 0.8e-3}, factor=0.5) == "high", "group 0 would be 5e-4"
    assert risk("set_learning_rate", {"max_lr": 1e-4}, factor=0.5) == "low", "above its bound, it comes nearer"
    assert risk("set_learning_rate", {"max_lr": 1e-4}, factor=1.5) == "high"


def test_grant_of_the_rate_narrows_it() -> None:
    narrow = {"grants": {"knobs": {"lr": {"max_factor": 1.2, "max": 2.2e-3}}}}
    assert risk("set_learning_rate", narrow, factor=1.1) == "low"
    assert risk("set_learning_rate", narrow, factor=1.19) == "high", "group 1 would be above the grant's max"
    assert risk("set_learning_rate", narrow, factor=0.8) == "high"


def test_granted_knobs_count_by_their_grant() -> None:
    assert change("gradient_clipping", value=2.0) == "low"
    assert change("gradient_clipping", value=2.1) == "high"
    assert change("gradient_clipping", factor=0.5) == "low"
    assert change("gradient_clipping", value=0.2) == "high"
    assert change("betas", value=(0.95, 0.95)) == "low"
    assert change("betas", value=(0.5, 0.999)) == "high"
    assert change("flag", value=True) == "low"


@pytest.mark.parametrize("knob", ["weight_decay", "gone", "odd", "lr_other"])
def test_what_is_not_granted_or_not_known_is_of_high_risk(knob: str) -> None:
    assert change(knob, factor=1.0) == "high"


def test_one_change_of_high_risk_is_enough() -> None:
    both = [{"knob": "gradient_clipping", "value": 2.0}, {"knob": "weight_decay", "factor": 1.0}]
    assert risk("set_knobs", changes=both) == "high"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("pause", {}),
        ("stop", {}),
        ("rollback", {"checkpoint": "c1"}),
        ("set_schedule", {"shape": "cosine"}),
        ("freeze", {"parameters": "*"}),
        ("skip_samples", {"samples": 1}),
        ("run_action", {"name": "reshuffle"}),
        ("reset_parameters", {"modules": "*"}),
    ],
)
def test_what_changes_the_course_is_of_high_risk(kind: str, body: dict[str, Any]) -> None:
    assert risk(kind, **body) == "high"


def test_without_live_values_nothing_about_numbers_is_of_low_risk() -> None:
    assert risk_of(intent("set_learning_rate", factor=0.5), AgentSettings(), {}) == "high"
    assert risk_of(intent("set_learning_rate", factor=0.5), AgentSettings(), {"lr": ["NaN"]}) == "high"
    assert risk_of(intent("evaluate"), AgentSettings(), {}) == "low"
