"""The verdict: computed from figures and targets alone, and never by accident."""

import json
import math

import pytest

from benchmarks.harness.result import Bound, Result, Table, met

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("figures", "targets", "expected"),
    [
        ({"cost": 1.0}, {"cost": {"max": 1.0}}, True),
        ({"cost": 1.1}, {"cost": {"max": 1.0}}, False),
        ({"cost": -3.0}, {"cost": {"max": 0}}, True),
        ({"speed": 0.99}, {"speed": {"min": 0.99}}, True),
        ({"speed": 0.98}, {"speed": {"min": 0.99}}, False),
        ({"share": 0.5}, {"share": {"min": 0.4, "max": 0.6}}, True),
        ({"share": 0.7}, {"share": {"min": 0.4, "max": 0.6}}, False),
        ({"cost": 0.5, "errors": 1}, {"cost": {"max": 1.0}, "errors": {"max": 0}}, False),
        ({"cost": 0.5, "other": NAN}, {"cost": {"max": 1.0}}, True),
    ],
)
def test_met_compares_each_figure_with_its_bound(
    figures: dict[str, float], targets: dict[str, Bound], expected: bool
) -> None:
    assert met(figures, targets) is expected


@pytest.mark.parametrize("value", [None, NAN, INF, -INF])
@pytest.mark.parametrize("bound", [{"max": 1.0}, {"min": -1.0}, {"min": -1.0, "max": 1.0}])
def test_met_without_a_finite_number_is_false(value: float | None, bound: Bound) -> None:
    assert not met({"cost": value}, {"cost": bound})


def test_met_with_a_missing_figure_is_false() -> None:
    assert not met({"other": 0.0}, {"cost": {"max": 1.0}})


def test_met_without_any_target_is_false() -> None:
    assert not met({"cost": 0.0}, {})


@pytest.mark.parametrize("bound", [{}, {"maximum": 1.0}, {"max": NAN}, {"max": INF}, {"min": -INF}])
def test_met_with_a_target_that_bounds_nothing_is_an_error(bound: Bound) -> None:
    with pytest.raises(ValueError, match="not a bound"):
        met({"cost": 0.0}, {"cost": bound})


def test_result_as_json_has_every_member_and_is_plain_json() -> None:
    result = Result({"cost": 0.5, "rest": NAN}, {"cost": {"max": 1.0}}, 3, (Table("t", ("a",), (("x", "1"),)),))
    answer = json.loads(json.dumps(result.to_json("fake", {"cores": 2}, {"python": "3"}), allow_nan=False))
    assert answer == {
        "benchmark": "fake",
        "figures": {"cost": 0.5, "rest": None},
        "targets": {"cost": {"max": 1.0}},
        "met": True,
        "verdict": "met",
        "n": 3,
        "machine": {"cores": 2},
        "versions": {"python": "3"},
    }


@pytest.mark.parametrize(
    ("cost", "blocks", "undecided", "expected"),
    [
        (0.5, 60, (), "met"),
        (0.5, 60, ("cost",), "met"),
        (1.5, 60, (), "not met"),
        (1.5, 60, ("cost",), "not proved"),
        (NAN, 60, ("cost",), "not proved"),
        (0.5, 2, ("cost", "blocks"), "not proved"),
        (1.5, 2, ("blocks",), "not met"),
    ],
)
def test_verdict_is_not_met_as_soon_as_one_target_is_shown_to_be_missed(
    cost: float, blocks: float, undecided: tuple[str, ...], expected: str
) -> None:
    targets: dict[str, Bound] = {"cost": {"max": 1.0}, "blocks": {"min": 60}}
    result = Result({"cost": cost, "blocks": blocks}, targets, 1, undecided=frozenset(undecided))
    assert result.verdict == expected
    assert result.met is (expected == "met")


def test_verdict_without_any_target_is_not_met() -> None:
    assert Result({"cost": 0.0}, {}, 1).verdict == "not met"
