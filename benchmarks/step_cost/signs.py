"""Cost of health signs per step: off, every step's own, with the norms of layers, with hooks at every step.

Two CPU ranks train the model of `configs/gpt2-local.yaml` with Transformers and DeepSpeed ZeRO-2; the arms take turns
in blocks of steps of one training. Each cost is a paired ratio with a 95 % interval, for wall time and processor time,
told as a share of a step of 100 ms: what the signs take does not grow with a step of this model. Beside each stands the
A/A comparison of two blocks without signs, which says what the machine's noise alone would look like.

The default measures by hooks every `health.hook_steps` steps: its cost is that of the layers' arm and the hooks' part
by that number. `in_line_us` is the time in which a step waited for the signs, and `in_line_cpu_us` the processor time
of it, by the clocks of the slower rank's own thread, without what hooks take within the step: on a busy machine the
first also holds the time of others.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.paired_bootstrap import Estimate, overhead
from benchmarks.harness.quantiles import median
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from control_plane.core.health.settings import HealthSettings

RANKS = 2
BLOCK_STEPS, WARM_UP_STEPS = 20, 30
QUICK_STEPS = 10
TIMEOUT_S = 3600.0
RUN_LENGTH = 4
STEP_MS = 100.0
"""Step that the targets are for."""

MEASURES = {"wall": "wall time", "cpu": "processor time"}
COMPARED = ("steps", "layers", "hooks", "again")
LIMIT_STEPS, LIMIT_DEFAULT = 0.5, 1.0

TARGETS: dict[str, Bound] = {
    "steps_wall_percent_of_100_ms_high": {"max": LIMIT_STEPS},
    "steps_cpu_percent_of_100_ms_high": {"max": LIMIT_STEPS},
    "default_wall_percent_of_100_ms_high": {"max": LIMIT_DEFAULT},
    "default_cpu_percent_of_100_ms_high": {"max": LIMIT_DEFAULT},
    "steps_in_line_cpu_percent_of_100_ms": {"max": LIMIT_STEPS},
}

Blocks = Sequence[Sequence[dict[str, Any]]]


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rounds of blocks. Raises `SteerwayError` if a rank fails."""
    say(f"signs: {n} rounds of blocks on {RANKS} ranks")
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        spec = {
            "rounds": n,
            "block_steps": QUICK_STEPS if quick else BLOCK_STEPS,
            "warm_up_steps": QUICK_STEPS if quick else WARM_UP_STEPS,
            "root": str(Path(name) / "runs" / "signs"),
        }
        ranks = run_ranks("benchmarks.step_cost.signs_rank:train", RANKS, spec, Path(name), TIMEOUT_S)
    return result_of(ranks, n)


def result_of(ranks: Blocks, n: int) -> Result:
    """Return the result of the ranks' blocks."""
    steps = ranks[0][0]["steps"]
    off_ms = {part: median(_times_s(ranks, "off", part)) * 1e3 / steps / len(ranks) for part in MEASURES}
    estimates = {
        (arm, part): _of_a_step(
            overhead(_times_s(ranks, arm, part), _times_s(ranks, "off", part), RUN_LENGTH), off_ms[part]
        )
        for arm in COMPARED
        for part in MEASURES
    }
    estimates |= {("default", part): _default(estimates, part) for part in MEASURES}
    figures: dict[str, float] = {"step_ms": off_ms["wall"], "step_cpu_ms": off_ms["cpu"]}
    for (arm, part), estimate in estimates.items():
        figures |= estimate.figures(f"{arm}_{part}_percent_of_100_ms")
    for arm in ("steps", "layers", "hooks"):
        for part in ("in_line", "in_line_cpu"):
            spent_us = max(median(one[f"{part}_us"] for one in rank if one["arm"] == arm) for rank in ranks)
            figures |= {f"{arm}_{part}_us": spent_us, f"{arm}_{part}_percent_of_100_ms": spent_us / STEP_MS / 10}
    # The upper end above a limit proves nothing while the lower end is below it.
    undecided = {
        name for name in TARGETS if name.endswith("_high") and figures[f"{name[:-5]}_low"] <= TARGETS[name]["max"]
    }
    return Result(figures, TARGETS, n, (_table(estimates),), frozenset(undecided))


def _times_s(ranks: Blocks, arm: str, part: str) -> list[float]:
    """Return the sum of the ranks' times of each block of an arm, in the order of the rounds."""
    by_rank = [sorted((one["round"], one[f"{part}_s"]) for one in rank if one["arm"] == arm) for rank in ranks]
    return [sum(value for _, value in times) for times in zip(*by_rank, strict=True)]


def _of_a_step(estimate: Estimate, off_ms: float) -> Estimate:
    """Return an overhead on a step of `off_ms` as a share of a step of `STEP_MS`."""
    return _scaled(estimate, off_ms / STEP_MS)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.percent * factor, estimate.low * factor, estimate.high * factor)


def _default(estimates: dict[tuple[str, str], Estimate], part: str) -> Estimate:
    """Return the cost with hooks at the default interval; the ends of the intervals are added, which is wider."""
    layers, hooks = estimates["layers", part], estimates["hooks", part]
    share = 1 / HealthSettings().hook_steps
    return Estimate(
        layers.percent + share * (hooks.percent - layers.percent),
        layers.low + share * min(0.0, hooks.low),
        layers.high + share * max(0.0, hooks.high),
    )


def _table(estimates: dict[tuple[str, str], Estimate]) -> Table:
    told = {
        "steps": "signs of every step, and the gather",
        "layers": "and norms of layers",
        "default": "and hooks every 100 steps (default)",
        "hooks": "everything, hooks at every step",
        "again": "A/A: off beside off",
    }
    rows = tuple((text, *(str(estimates[arm, part]) for part in MEASURES)) for arm, text in told.items())
    return Table("cost, as a share of a step of 100 ms (95 % interval)", tuple(MEASURES.values()), rows)
