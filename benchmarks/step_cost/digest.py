"""Cost of digesting the live state every k steps: ours, beside a plain implementation, in turns.

    off      nothing
    ours     every k steps: every tensor of every rank by xxh3, roots over gloo, parts to a file
    plain    every k steps: SHA-256 of what `torch.save` writes of the model's and the optimizer's `state_dict`

Two CPU ranks train `configs/gpt2-local.yaml`, without a control server. A block is a few steps of one arm; all blocks
of a round are made in one training, in an order that rotates from round to round.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import midpoint
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table

RANKS = 2
EVERY = (1, 10, 100)
STEPS = 100
QUICK_STEPS = 10
TIMEOUT_S = 3000.0

TARGETS: dict[str, Bound] = {"ours_cpu_percent_k10": {"max": 1.0}, "ours_cpu_percent_k100": {"max": 0.1}}
"""Targets for processor time: on a busy machine the time of whole steps varies by more than that."""

Block = dict[str, Any]
"""`arm`, `every`, `step_ms` and `step_cpu_ms` (means), and of each digest `digest_ms`, `digest_cpu_ms` (the training
thread's) and `digest_bytes`, on one rank."""


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rounds. Raises `SteerwayError` if a rank fails."""
    steps = QUICK_STEPS if quick else STEPS
    say(f"digest: {n} rounds of {2 * len(EVERY) + 1} blocks of {steps} steps on {RANKS} ranks")
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        spec = {"folder": name, "rounds": n, "steps": steps, "every": EVERY}
        ranks = run_ranks("benchmarks.step_cost.digest_rank:train", RANKS, spec, Path(name), TIMEOUT_S)
    return Result(figures_of(ranks), TARGETS, n, (_table(ranks[0]),))


def figures_of(ranks: Sequence[Sequence[Block]]) -> dict[str, float]:
    """Return the figures. Step times are rank 0's; the time of a digest is that of the slowest rank.

    `overhead_percent` is the time of steps over that of `off` in the same round: median, least and greatest.
    `cpu_percent` is the processor time of the digests over that of the steps, which varies less.
    """
    step_cpu_ms = midpoint(_steps(ranks[0], "off", 0, "step_cpu_ms"))
    figures = {"off_step_ms": midpoint(_steps(ranks[0], "off", 0, "step_ms")), "off_step_cpu_ms": step_cpu_ms}
    for arm in ("ours", "plain"):
        taken_ms = [max(times) for times in zip(*(_digests(rank, arm, "digest_ms") for rank in ranks), strict=True)]
        size_bytes = midpoint(_digests(ranks[0], arm, "digest_bytes"))
        cpu_ms = midpoint(ms for rank in ranks for ms in _digests(rank, arm, "digest_cpu_ms"))
        figures |= {
            f"{arm}_digest_ms": midpoint(taken_ms),
            f"{arm}_digest_ms_max": max(taken_ms),
            f"{arm}_digest_cpu_ms": cpu_ms,
            f"{arm}_digest_mb": size_bytes / 1e6,
            f"{arm}_mb_per_cpu_s": size_bytes / 1e3 / cpu_ms,
        }
        for every in sorted({block["every"] for block in ranks[0] if block["arm"] == arm}):
            overheads = overheads_percent(ranks[0], arm, every)
            figures |= {
                f"{arm}_overhead_percent_k{every}": midpoint(overheads),
                f"{arm}_overhead_percent_k{every}_min": min(overheads),
                f"{arm}_overhead_percent_k{every}_max": max(overheads),
                f"{arm}_cpu_percent_k{every}": 100 * cpu_ms / every / step_cpu_ms,
            }
    return figures


def overheads_percent(blocks: Sequence[Block], arm: str, every: int) -> list[float]:
    """Return by round how much longer a step took than one of `off`, in percent."""
    off, theirs = _steps(blocks, "off", 0, "step_ms"), _steps(blocks, arm, every, "step_ms")
    return [100 * (with_it / without - 1) for without, with_it in zip(off, theirs, strict=True)]


def _steps(blocks: Sequence[Block], arm: str, every: int, what: str) -> list[float]:
    return [block[what] for block in blocks if (block["arm"], block["every"]) == (arm, every)]


def _digests(blocks: Sequence[Block], arm: str, what: str) -> list[float]:
    return [value for block in blocks if block["arm"] == arm for value in block[what]]


def _table(blocks: Sequence[Block]) -> Table:
    rows = []
    for every in sorted({block["every"] for block in blocks if block["every"]}):
        cells = [f"{midpoint(overheads_percent(blocks, arm, every)):+.2f} %" for arm in ("ours", "plain")]
        rows.append((f"every {every} steps", *cells))
    return Table("a step takes longer by", ("ours", "SHA-256 of torch.save"), tuple(rows))
