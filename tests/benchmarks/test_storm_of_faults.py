"""The storm of faults: its plan comes from its seed, and its verdict sees whatever went wrong."""

from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest

from benchmarks.harness.result import Result
from benchmarks.storm.faults import LEAST_GAP_S, MOST_GAP_S, PARTS, SIGNALS, plan
from benchmarks.storm.storm_of_faults import TARGETS, StormResult, figures_of

GOOD = StormResult(
    1, hits={"rank": 3, "Serve controller": 2}, acknowledged=[UUID(int=7)] * 300, outages_s=[3.0, 4.5], ended=True
)


def verdict(*storms: StormResult) -> bool:
    n = len(storms)
    return Result(figures_of(list(storms)), {**TARGETS, "runs_that_ended": {"min": n, "max": n}}, n).met


def test_plan_is_that_of_its_seed_and_hits_every_part_with_both_signals() -> None:
    faults = list(plan(1, 3600))
    assert faults == list(plan(1, 3600)) != list(plan(2, 3600))
    assert {(fault.part, fault.signal) for fault in faults} == {(part, each) for part in PARTS for each in SIGNALS}
    times = [0.0, *(fault.at_s for fault in faults)]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert min(gaps) >= LEAST_GAP_S
    assert max(gaps) <= MOST_GAP_S
    assert times[-1] < 3600


def test_figures_are_sums_or_the_worst() -> None:
    other = replace(GOOD, seed=2, hits={"rank": 1}, outages_s=[6.0], back_after_s=9.0)
    figures = figures_of([GOOD, other])
    assert figures["faults_rank"] == 4
    assert figures["faults_Serve_controller"] == 2
    assert figures["faults_proxy"] == 0
    assert figures["acknowledged"] == 600
    assert figures["failure_rate_below"] == pytest.approx(3 / 600)
    assert figures["gateway_outage_s_max"] == 6
    assert figures["back_after_s_max"] == 9


def test_storms_without_a_failure_meet_the_targets() -> None:
    assert verdict(GOOD, replace(GOOD, seed=2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost": 1.0},
        {"twice": 1.0},
        {"not_back": ["the console does not answer"]},
        {"left_behind": 1},
        {"ended": False},
        {"acknowledged": []},
    ],
)
def test_one_thing_that_went_wrong_in_one_storm_fails_them(wrong: dict[str, object]) -> None:
    assert not verdict(GOOD, replace(GOOD, seed=2, **wrong))  # type: ignore[arg-type]
