"""The verdict: computed from figures and targets alone, and never by accident."""

import json
import math

import pytest

from benchmarks.result import Bound, Result, Table, met

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
        "n": 3,
        "machine": {"cores": 2},
        "versions": {"python": "3"},
    }
