"""Limits: what a run's owner allows is said in the refusal, and nothing beyond it gets through."""

import math

import pytest
from pydantic import ValidationError

from control_plane.core.model.limits import Limit, limit_of, reason_against_intent, reason_against_value
from tests.core.examples import EVERY_INTENT, intent

LIMITS = {
    "lr": Limit(min=1e-6, max=1e-2, max_factor=10, cool_down_s=30, roles=("operator", "admin")),
    "*:p": Limit(max=0.5),
    "betas": Limit(min=0.5, max=0.999),
}


def asked(kind: str, role: str | None = "operator", ago_s: dict[str, float] | None = None, **body: object) -> str:
    return reason_against_intent(LIMITS, intent(kind, **body), role, ago_s or {}) or ""


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ({"value": 0.5}, "at most 0.01"),
        ({"value": 1e-7}, "at least 1e-06"),
        ({"factor": 11.0}, "at most 10"),
        ({"factor": 0.05}, "at least 0.1"),
    ],
)
def test_learning_rate_beyond_a_limit_is_refused_with_the_bound(body: dict[str, float], bound: str) -> None:
    assert bound in asked("set_learning_rate", **body)


@pytest.mark.parametrize("body", [{"value": 1e-2}, {"value": 1e-6}, {"factor": 10.0}, {"factor": 0.1}])
def test_learning_rate_at_a_limit_is_taken(body: dict[str, float]) -> None:
    assert asked("set_learning_rate", **body) == ""


def test_knob_of_a_pattern_has_the_pattern_s_limit() -> None:
    changes = [{"knob": "weight_decay", "value": 9.0}, {"knob": "h.0.drop:p", "value": 0.6}]
    assert asked("set_knobs", changes=changes) == "h.0.drop:p would be 0.6; this run allows at most 0.5"
    assert asked("set_knobs", changes=changes[:1]) == ""


def test_each_number_of_a_value_is_within_the_limit() -> None:
    assert "0.9999" in asked("set_knobs", changes=[{"knob": "betas", "value": [0.9, 0.9999]}])


@pytest.mark.parametrize(("role", "words"), [("agent", "not by agent"), ("admin", ""), (None, "")])
def test_role_that_is_not_listed_is_refused(role: str | None, words: str) -> None:
    assert words in asked("set_learning_rate", role=role, value=1e-3) or not words
    assert bool(asked("set_learning_rate", role=role, value=1e-3)) == bool(words)


def test_change_within_the_cool_down_is_refused_with_the_time_that_is_left() -> None:
    assert "try again in 20 s" in asked("set_learning_rate", ago_s={"lr": 10.0}, value=1e-3)
    assert asked("set_learning_rate", ago_s={"lr": 30.0}, value=1e-3) == ""
    assert "was changed" in asked("set_schedule", ago_s={"lr": 1.0}, shape="linear")
    assert "try again in 30 s" in asked("set_learning_rate", ago_s={"lr": -3600.0}, value=1e-3)


def test_breach_is_about_what_a_value_becomes() -> None:
    assert reason_against_value(LIMITS, "lr", [1e-3, 1e-4], [5e-3, 5e-4]) is None
    assert "at most 0.01" in (reason_against_value(LIMITS, "lr", [5e-3], [2e-2]) or "")
    assert "multiplied by 20" in (reason_against_value(LIMITS, "lr", [1e-4], [2e-3]) or "")
    assert reason_against_value(LIMITS, "lr", [0.0], [1e-3]) is None
    assert reason_against_value(LIMITS, "unlimited", 1, 1e9) is None


def test_own_limit_comes_before_a_pattern() -> None:
    limits = {"*": Limit(max=1), "lr": Limit(max=2)}
    assert limit_of(limits, "lr") == Limit(max=2)
    assert limit_of(limits, "eps") == Limit(max=1)


@pytest.mark.parametrize(
    "body", [{"min": 2, "max": 1}, {"max_factor": 0.5}, {"cool_down_s": 0}, {"max": math.nan}, {"mx": 1}, {"roles": []}]
)
def test_limit_that_makes_no_sense_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Limit.model_validate(body)


def test_every_intent_says_which_knobs_it_changes() -> None:
    told = {body["kind"]: intent(**body).knobs() for body in EVERY_INTENT}
    assert {kind for kind, knobs in told.items() if knobs} == {
        "set_learning_rate",
        "set_schedule",
        "set_knobs",
        "set_mixture",
        "run_action",
    }


@pytest.mark.parametrize(
    ("limits", "role", "is_taken"),
    [
        ({}, "operator", True),
        ({}, None, True),
        ({}, "agent", False),
        ({"action/*": Limit(cool_down_s=9)}, "agent", False),
        ({"action/other": Limit(roles=("agent",))}, "agent", False),
        ({"action/reshuffle": Limit(roles=("agent", "admin"))}, "agent", True),
        ({"action/*": Limit(roles=("agent",))}, "agent", True),
        ({"action/reshuffle": Limit(roles=("agent",))}, "operator", False),
    ],
)
def test_action_is_run_by_an_agent_only_where_a_limit_says_so(
    limits: dict[str, Limit], role: str | None, is_taken: bool
) -> None:
    told = reason_against_intent(limits, intent("run_action", name="reshuffle"), role, {})
    assert (told is None) == is_taken


def test_action_has_a_cool_down_like_a_knob() -> None:
    limits = {"action/reshuffle": Limit(cool_down_s=60)}
    asked = intent("run_action", name="reshuffle")
    assert "try again in 50 s" in (reason_against_intent(limits, asked, "operator", {"action/reshuffle": 10.0}) or "")


OWNED = {
    "dropout": Limit(roles=("admin",)),
    "h.0.drop:p": Limit(roles=("admin",), cool_down_s=60),
    "h.1.*:p": Limit(roles=("admin",)),
    "h.2.drop:p": Limit(cool_down_s=60),
}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*:p", "h.0.drop:p may be changed by admin"),
        ("h.[0].drop:p", "h.0.drop:p may be changed by admin"),
        ("h.1.*:p", "h.1.*:p may be changed by admin"),
        ("h.?.*:p", "may be changed by admin"),
        ("h.[2].drop:p", "h.2.drop:p was changed 1 s ago"),
        ("h.[3].drop:p", ""),
    ],
)
def test_pattern_is_bound_by_the_roles_and_cool_downs_of_what_it_covers(pattern: str, words: str) -> None:
    change = intent("set_knobs", changes=[{"knob": pattern, "value": 0.1}])
    told = reason_against_intent(OWNED, change, "agent", {"h.2.drop:p": 1.0})
    assert words in (told or "")
    assert bool(words) == bool(told)
    assert reason_against_intent(OWNED, change, "admin", {}) is None


@pytest.mark.parametrize(
    ("limits", "is_allowed"),
    [
        ({"*": Limit(roles=("agent", "admin"))}, False),
        ({"a*": Limit(roles=("agent",))}, False),
        ({"*": Limit(roles=("agent",)), "action/reshuffle": Limit(roles=("agent",))}, True),
        ({"action/*": Limit(roles=("agent",))}, True),
        ({"*": Limit(roles=("agent",)), "action/reshuffle": Limit(roles=("admin",))}, False),
    ],
)
def test_agent_runs_an_action_only_by_an_entry_for_actions(limits: dict[str, Limit], is_allowed: bool) -> None:
    action = intent("run_action", name="reshuffle", arguments={})
    assert (reason_against_intent(limits, action, "agent", {}) is None) == is_allowed


def test_change_by_a_pattern_counts_for_every_knob_that_the_ranks_read_after_it() -> None:
    change = intent("set_knobs", changes=[{"knob": "*:p", "value": 0.1}])
    assert change.changed_knobs({"h.0.drop:p": 0.1, "dropout": 0.1}) == ("*:p", "h.0.drop:p", "dropout")
    assert intent("set_learning_rate", value=1e-3).changed_knobs({"lr": [1e-3], "schedule": []}) == ("lr",)
