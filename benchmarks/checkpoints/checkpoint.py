"""Stall of a step by a checkpoint: ours against `engine.save_checkpoint`, on the same engine, in turns: A B C C B A.

Two CPU ranks train a stack of wide layers with ZeRO 2, in growing sizes. Stock DeepSpeed returns when the files are in
the page cache; ours copies the state beside the next forward and backward pass, or at once, and its files are hashed,
written and synced in the background. So that is measured too: the copy's speed beside the memory's own, the write's
beside the bare disk's, and the cost of both for the steps meanwhile. If the temporary folder is in memory, set TMPDIR
to one on a disk.
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
SIZES_BYTES = (64 << 20, 256 << 20, 1 << 30)
QUICK_SIZES_BYTES = (8 << 20, 32 << 20)
ARMS = {"overlapped": "ours, beside the next step", "at_once": "ours, at once", "stock": "stock"}
STEPS = 12
QUICK_STEPS = 3
TIMEOUT_S = 900.0

TARGETS: dict[str, Bound] = {"overlapped_over_stock": {"max": 0.05}, "at_once_over_stock": {"max": 0.5}}

Seen = dict[str, Any]
"""Seconds of one rank at one size: `first`, `raw`; lists by arm, `copy_s`, `quiet`, `writing`; `write` by phase."""


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rounds of four saves at each size. Raises `SteerwayError` if a rank fails."""
    sizes = QUICK_SIZES_BYTES if quick else SIZES_BYTES
    say(f"checkpoint: {n} rounds at {', '.join(_megabytes(size) for size in sizes)} on {RANKS} ranks")
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        spec = {"folder": name, "rounds": n, "sizes": sizes, "quiet_steps": QUICK_STEPS if quick else STEPS}
        ranks = run_ranks("benchmarks.checkpoints.checkpoint_rank:save", RANKS, spec, Path(name), TIMEOUT_S)
    return Result(figures_of(ranks), TARGETS, n, (_table(ranks),))


def figures_of(ranks: Sequence[Sequence[Seen]]) -> dict[str, float]:
    """Return the figures by size, of the slowest rank. Names without a size are those of the largest."""
    figures: dict[str, float] = {}
    for at_size in zip(*ranks, strict=True):
        suffix = f"_{_megabytes(at_size[0]['state_bytes'])}".replace(" ", "_")
        seconds = {arm: blocked_s(at_size, arm) for arm in ARMS}
        figures |= {f"{arm}_s{suffix}": each for arm, each in seconds.items()}
        for arm in ("overlapped", "at_once"):
            figures[f"{arm}_over_stock{suffix}"] = seconds[arm] / seconds["stock"]
    largest = [rank[-1] for rank in ranks]
    size_bytes = largest[0]["size_bytes"]
    raw_s = largest[0]["raw"]
    write_s = max(seen["write"]["write"] for seen in largest)
    return {
        **{f"{arm}_over_stock": figures[f"{arm}_over_stock{suffix}"] for arm in ("overlapped", "at_once")},
        # The last rank's: rank 0 counts the whole checkpoint's bytes.
        "copy_gb_per_s": largest[-1]["size_bytes"] / midpoint(largest[-1]["copy_s"]) / 1e9,
        "memory_gb_per_s": largest[-1]["memory_bytes_per_s"] / 1e9,
        "first_blocked_s": max(seen["first"] for seen in largest),
        "checkpoint_mb": size_bytes / 1e6,
        "background_write_mb_per_s": size_bytes / 1e6 / write_s,
        "raw_disk_mb_per_s": size_bytes / 1e6 / raw_s,
        "background_over_raw_disk": raw_s / write_s,
        "step_time_ratio_while_writing": midpoint(largest[0]["writing"]) / midpoint(largest[0]["quiet"]),
        **figures,
    }


def blocked_s(at_size: Sequence[Seen], arm: str) -> float:
    """Return the time of the median save, each one that of the slowest rank."""
    return midpoint(map(max, zip(*(seen[arm] for seen in at_size), strict=True)))


def _table(ranks: Sequence[Sequence[Seen]]) -> Table:
    rows = []
    for at_size in zip(*ranks, strict=True):
        seconds = [blocked_s(at_size, arm) for arm in ARMS]
        times = f"{seconds[-1] / seconds[0]:.1f}"
        rows.append((_megabytes(at_size[0]["state_bytes"]), *(f"{each:.4f}" for each in seconds), times))
    return Table("seconds that a step waits", (*ARMS.values(), "stock / beside"), tuple(rows))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB"
