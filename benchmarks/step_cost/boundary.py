"""Cost of a step boundary without commands: none, blocking and prefetched, in turns in one training.

Two CPU ranks (and four, where there are cores for them) train the model of `configs/gpt2-local.yaml` with Transformers
and DeepSpeed ZeRO-2. The figures are the time that a rank spends in `begin_step` and `end_step`, of the slowest rank.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median, midpoint, quantile
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table

BLOCK_STEPS = 25
WARM_UP_STEPS = 20
QUICK_STEPS = 4
TIMEOUT_S = 900.0

TARGETS: dict[str, Bound] = {"prefetched_percent_of_step": {"max": 1.0}}


@dataclass(frozen=True)
class BoundaryTimes:
    """Times of each rank's steps: (round, variant, boundary in us, step in us), and of bare broadcasts in us."""

    steps: Sequence[Sequence[Sequence[Any]]]
    bare_us: Sequence[Sequence[float]]

    def boundary_us(self, variant: str, share: float) -> float:
        """Return a quantile of the time in the boundary, of the slowest rank."""
        return max(quantile((step[2] for step in rank if step[1] == variant), share) for rank in self.steps)

    def step_us(self, variant: str, round_: int | None = None) -> float:
        """Return the median time of a step on rank 0; all ranks make the same steps."""
        return median(step[3] for step in self.steps[0] if step[1] == variant and round_ in (None, step[0]))

    def step_ratio(self, variant: str) -> float:
        """Return the step time relative to that without a boundary in the same round: the median of the rounds."""
        rounds = sorted({step[0] for step in self.steps[0]})
        return midpoint(self.step_us(variant, number) / self.step_us("none", number) for number in rounds)


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rounds. Raises `SteerwayError` if a rank fails."""
    worlds = [2, 4] if (os.cpu_count() or 1) >= 4 and not quick else [2]
    figures: dict[str, float] = {}
    tables = []
    for world_size in worlds:
        say(f"boundary: {n} rounds on {world_size} ranks")
        seen = _measure(n, quick, world_size)
        suffix = "" if world_size == 2 else f"_{world_size}_ranks"
        figures |= {f"{name}{suffix}": value for name, value in figures_of(seen).items()}
        tables.append(_table(seen, world_size))
    return Result(figures, TARGETS, n, tuple(tables))


def _measure(rounds: int, quick: bool, world_size: int) -> BoundaryTimes:
    spec: dict[str, Any] = {
        "rounds": rounds,
        "block_steps": QUICK_STEPS if quick else BLOCK_STEPS,
        "warm_up_steps": QUICK_STEPS if quick else WARM_UP_STEPS,
    }
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        folder = Path(name)
        spec["output_dir"] = str(folder / "trainer")
        answers = run_ranks("benchmarks.step_cost.boundary_rank:train", world_size, spec, folder, TIMEOUT_S)
    return BoundaryTimes([answer["steps"] for answer in answers], [answer["bare_us"] for answer in answers])


def figures_of(seen: BoundaryTimes) -> dict[str, float]:
    """Return the figures of one world size. Microseconds are for information; the target bounds a ratio."""
    step_us = seen.step_us("none")
    blocking_us, prefetched_us = seen.boundary_us("blocking", 0.5), seen.boundary_us("prefetched", 0.5)
    synchronised_us = seen.boundary_us("synchronised", 0.5)
    return {
        "prefetched_percent_of_step": 100 * prefetched_us / step_us,
        "blocking_percent_of_step": 100 * blocking_us / step_us,
        "prefetched_over_blocking": prefetched_us / blocking_us,
        "blocking_wait_for_slower_rank_share": max(0.0, 1 - synchronised_us / blocking_us),
        "prefetched_step_time_ratio": seen.step_ratio("prefetched"),
        "blocking_step_time_ratio": seen.step_ratio("blocking"),
        "prefetched_us_p50": prefetched_us,
        "prefetched_us_p99": seen.boundary_us("prefetched", 0.99),
        "blocking_us_p50": blocking_us,
        "blocking_us_p99": seen.boundary_us("blocking", 0.99),
        "synchronised_us_p50": synchronised_us,
        "bare_broadcast_us_p50": max(median(rank) for rank in seen.bare_us),
        "step_us_p50": step_us,
    }


def _table(seen: BoundaryTimes, world_size: int) -> Table:
    arms = ("none", "blocking", "prefetched", "synchronised")
    shares = {"median": 0.5, "p99": 0.99}
    rows = [
        (f"in the boundary, {name} (us)", *(f"{seen.boundary_us(arm, share):.0f}" for arm in arms))
        for name, share in shares.items()
    ]
    rows.append(("step, median (us)", *(f"{seen.step_us(arm):.0f}" for arm in arms)))
    rows.append(("step against none, by round", *(f"{seen.step_ratio(arm):.4f}" for arm in arms)))
    return Table(f"{world_size} ranks", arms, tuple(rows))
