"""The overhead benchmark's verdict: what it says of noise alone, of a planted cost, and of none."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.paired_bootstrap import overhead
from benchmarks.harness.report import TOLD
from benchmarks.step_cost.overhead import LEAST_BLOCKS, LEAST_PAIRS, TARGETS, result_of

TURNS = ("steered", "plain", "again")


def ranks(
    cost: float, noise: float, seed: int = 1, blocks: int = LEAST_BLOCKS, pairs: int = LEAST_PAIRS
) -> list[dict[str, Any]]:
    """What two ranks would answer: a step takes 0.1 s, `1 + cost` times as long in the steered arm, times noise.

    The machine becomes a third slower from the first round to the last.
    """
    chance = np.random.default_rng(seed)

    def part(rounds: int, steps: int) -> list[dict[str, Any]]:
        turns = [(number, arm) for number in range(rounds) for arm in TURNS]
        slower = 1 + np.linspace(0, 1 / 3, len(turns))
        seen = []
        for (number, arm), drift in zip(turns, slower, strict=True):
            wall_s = 0.1 * steps * drift * (1 + cost * (arm == "steered")) * math.exp(noise * chance.normal())
            boundary_us = [300.0, 500.0, 400.0] if arm == "steered" else []
            about = {"round": number, "arm": arm, "steps": steps, "boundary_us": boundary_us}
            own_s = (
                {"threads_s": 0.002, "monitors_s": 0.008} if arm == "steered" else {"threads_s": 0.0, "monitors_s": 0.0}
            )
            seen.append(about | {"wall_s": wall_s, "cpu_s": 0.8 * wall_s} | own_s)
        return seen

    one = {"blocks": part(blocks, 20), "trainings": part(pairs, 60)}
    return [one, one]


def drifting(size: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of times that are equal but for noise, whose neighbours resemble each other."""
    chance = np.random.default_rng(seed)
    common = np.exp(np.cumsum(0.05 * chance.normal(size=size)))
    return common * np.exp(noise * chance.normal(size=size)), common


def test_noise_alone_is_not_proved() -> None:
    result = result_of(ranks(cost=0.0, noise=0.05), LEAST_BLOCKS)
    assert (result.verdict, result.met) == ("not proved", False)
    assert "not proved" in TOLD[result.verdict]


def test_planted_cost_of_three_percent_is_not_met() -> None:
    result = result_of(ranks(cost=0.03, noise=0.005), LEAST_BLOCKS)
    assert result.verdict == "not met"
    assert result.verdict_on("blocks_wall_percent_high") == "not met"
    assert result.figures["blocks_wall_percent"] == pytest.approx(3.0, abs=0.5)
    assert result.figures["trainings_wall_percent"] == pytest.approx(3.0, abs=0.8)
    assert result.figures["blocks_aa_wall_percent"] == pytest.approx(0.0, abs=0.5)


def test_planted_cost_in_either_part_is_enough() -> None:
    free, costly = ranks(cost=0.0, noise=0.003)[0], ranks(cost=0.03, noise=0.003)[0]
    for part in ("blocks", "trainings"):
        mixed = free | {part: costly[part]}
        result = result_of([mixed, mixed], LEAST_BLOCKS)
        assert result.verdict == "not met"
        assert result.verdict_on(f"{part}_wall_percent_high") == "not met"


def test_tight_zero_is_met() -> None:
    result = result_of(ranks(cost=0.0, noise=0.005), LEAST_BLOCKS)
    assert (result.verdict, result.met) == ("met", True)
    assert result.figures["plain_step_ms"] == pytest.approx(100 * (1 + 1 / 6), rel=0.05)
    assert result.figures["boundary_us_median"] == 400
    share = result.figures["monitors_cpu_percent"] / result.figures["threads_cpu_percent"]
    assert share == pytest.approx(4)
    assert result.figures["threads_cpu_percent"] == pytest.approx(100 * 0.002 / (0.8 * 6 * (1 + 1 / 6)), rel=0.05)


@pytest.mark.parametrize("few", [{"blocks": LEAST_BLOCKS - 1}, {"pairs": LEAST_PAIRS - 1}, {"blocks": 2, "pairs": 1}])
def test_too_few_blocks_or_pairs_prove_nothing(few: dict[str, int]) -> None:
    result = result_of(ranks(cost=0.0, noise=0.001, **few), 2)
    assert (result.verdict, result.met) == ("not proved", False)


def test_every_target_is_a_figure() -> None:
    assert set(TARGETS) <= set(result_of(ranks(cost=0.0, noise=0.01), LEAST_BLOCKS).figures)


def test_same_times_give_the_same_interval() -> None:
    times = drifting(60, 0.03, seed=3)
    assert overhead(*times, run_length=4) == overhead(*times, run_length=4)


@pytest.mark.parametrize(("size", "run_length"), [(60, 4), (12, 1)])
def test_interval_holds_the_truth_about_as_often_as_it_says(
    size: int, run_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.harness.paired_bootstrap.RESAMPLES", 1000)
    found = [overhead(*drifting(size, 0.03, seed), run_length) for seed in range(200)]
    held = sum(each.low <= 0 <= each.high for each in found)
    assert 180 <= held <= 199  # of 200; 95 % are 190


def test_burst_in_one_arm_moves_the_estimate_little() -> None:
    with_it, without = drifting(60, 0.005, seed=4)
    with_it[[7, 30]] *= 5
    assert overhead(with_it, without, run_length=4).percent == pytest.approx(0, abs=0.5)


def test_few_pairs_have_an_estimate_and_no_interval() -> None:
    estimate = overhead([1.1, 1.1], [1.0, 1.0], run_length=1)
    assert estimate.percent == pytest.approx(10)
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
    assert math.isnan(overhead([], [], run_length=1).percent)
