"""The benchmark of automatic mixtures: its verdict of planted costs, and the plan of its blocks."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.step_cost.mixture_cost import result_of


def ranks(cost_ms: float, noise: float = 0.0005, rounds: int = 40) -> list[list[dict[str, Any]]]:
    """What two ranks would answer, whose step takes 50 ms and its losses of sources `cost_ms`; rank 1 half of it."""
    chance = np.random.default_rng(1)
    answers: list[list[dict[str, Any]]] = [[], []]
    for number in range(rounds):
        for arm in ("off", "on", "again"):
            for rank, blocks in enumerate(answers):
                own_ms = cost_ms / (1 + rank) if arm == "on" else 0.0
                wall_s = 20 * (50 + own_ms) / 1e3 * (1 + number / rounds) * math.exp(noise * chance.normal())
                times = {
                    "wall_s": wall_s,
                    "cpu_s": wall_s,
                    "in_line_us": 1.5e3 * own_ms,
                    "in_line_cpu_us": 1e3 * own_ms,
                }
                blocks.append({"round": number, "arm": arm, "steps": 20} | times)
    return answers


def test_small_cost_is_met_and_the_agents_share_of_a_core_is_added() -> None:
    result = result_of(ranks(0.1), [0.001, 0.003] * 10, 40)
    assert result.verdict == "met", result.figures
    assert result.figures["losses_in_line_cpu_percent_of_100_ms"] == pytest.approx(0.1), "that of the slower rank"
    assert result.figures["agent_cpu_percent_of_100_ms"] == pytest.approx(0.2)
    assert result.figures["total_cpu_percent_of_100_ms"] == pytest.approx(0.3)
    assert result.figures["total_cpu_percent_of_100_ms_high"] > 0.3
    # Half a millisecond less on rank 1; the machine is half again as slow on average.
    assert result.figures["losses_wall_percent_of_100_ms"] == pytest.approx(0.11, abs=0.05)


@pytest.mark.parametrize(("cost_ms", "share"), [(2.0, 0.001), (0.1, 0.02)])
def test_planted_cost_is_not_met(cost_ms: float, share: float) -> None:
    result = result_of(ranks(cost_ms), [share, share] * 10, 40)
    assert result.verdict == "not met"
    assert result.verdict_on("total_cpu_percent_of_100_ms_high") == "not met"


def test_noise_alone_is_not_proved() -> None:
    assert result_of(ranks(0.1, noise=0.1), [0.001, 0.003] * 10, 40).verdict == "not proved"


def test_blocks_are_whole_rounds_of_measurements() -> None:
    pytest.importorskip("torch")
    from benchmarks.step_cost.mixture_cost_rank import ARMS, MixtureBlocks, plan

    orders = [[arm for number, arm in plan(2) if number == round_] for round_ in (0, 1)]
    assert orders == [list(ARMS), list(ARMS[::-1])]
    with pytest.raises(ValueError, match="multiples of 10 steps"):
        MixtureBlocks(None, plan(1), block_steps=15, warm_up_steps=30)
