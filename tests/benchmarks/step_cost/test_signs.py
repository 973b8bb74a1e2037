"""The signs benchmark's verdict: of noise alone, of a planted cost, and of what its arms do."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.step_cost.signs import result_of

ARMS = ("off", "steps", "layers", "hooks", "again")


def ranks(costs_ms: dict[str, float], noise: float = 0.002, rounds: int = 40) -> list[list[dict[str, Any]]]:
    """What two ranks would answer, whose step takes 50 ms and what an arm costs; the machine becomes slower."""
    chance = np.random.default_rng(1)
    blocks = []
    for number in range(rounds):
        for arm in ARMS:
            wall_s = (
                20 * (50 + costs_ms.get(arm, 0.0)) / 1e3 * (1 + number / rounds) * math.exp(noise * chance.normal())
            )
            own = {"in_line_us": 400.0, "in_line_cpu_us": 1e3 * costs_ms.get(arm, 0.0)}
            blocks.append({"round": number, "arm": arm, "steps": 20, "wall_s": wall_s, "cpu_s": wall_s} | own)
    return [blocks, blocks]


def test_small_cost_is_met_and_told_as_a_share_of_a_long_step() -> None:
    result = result_of(ranks({"steps": 0.2, "layers": 0.3, "hooks": 10.0}), 40)
    assert result.verdict == "met"
    assert result.figures["steps_wall_percent_of_100_ms"] == pytest.approx(0.3, abs=0.15)
    # The machine is half again as slow on average; of the hooks' 10 ms a hundredth counts.
    assert result.figures["default_wall_percent_of_100_ms"] == pytest.approx(0.6, abs=0.2)


def test_planted_cost_of_two_milliseconds_is_not_met() -> None:
    result = result_of(ranks({"steps": 2.0, "layers": 2.0, "hooks": 2.0}), 40)
    assert result.verdict_on("steps_wall_percent_of_100_ms_high") == "not met"
    assert result.verdict == "not met"


def test_noise_alone_is_not_proved() -> None:
    assert result_of(ranks({}, noise=0.1), 40).verdict == "not proved"


def test_plan_turns_round_and_gives_each_arm_the_same_blocks() -> None:
    pytest.importorskip("torch")
    from benchmarks.step_cost.signs_rank import ARMS as REAL
    from benchmarks.step_cost.signs_rank import plan

    assert tuple(REAL) == ARMS
    orders = [[arm for number, arm in plan(2) if number == round_] for round_ in (0, 1)]
    assert orders == [list(ARMS), list(ARMS[::-1])]
