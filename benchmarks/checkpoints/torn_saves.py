"""Checkpoint selection of a restart after a crash during a save: DeepSpeed's own protocol beside Steerway's.

Two ranks with a real engine save beside an older good checkpoint. A crash is simulated between any two file operations
of either rank; DeepSpeed's loader takes the checkpoint in `latest`, Steerway's the newest that verifies, and it is
compared, byte by byte, with the finished save. Both arms write the shards by the same DeepSpeed code.
"""

import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.catalogue import Say
from benchmarks.checkpoints.torn_saves_rank import OUTCOMES, PROTOCOLS
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table

WORLD_SIZE = 2
START_LIMIT_S, ROUND_LIMIT_S = 240.0, 60.0
TOLD = {
    "new": "the new checkpoint, complete",
    "old": "the old checkpoint, complete",
    "torn": "an incomplete checkpoint",
    "none": "none, although the old one is complete",
}
TARGETS: dict[str, Bound] = {"steerway_torn": {"max": 0}, "steerway_none": {"max": 0}}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` saves in each protocol, with a crash at each operation. Raises `SteerwayError` if a save fails."""
    say(f"{n} saves in each protocol, with a simulated crash before every file operation of both ranks ...")
    with tempfile.TemporaryDirectory(prefix="torn-saves-") as name:
        folder = Path(name)
        (folder / "saves").mkdir()
        spec = {"rounds": n, "folder": str(folder / "saves")}
        limit_s = START_LIMIT_S + n * ROUND_LIMIT_S
        by_rank = run_ranks(
            "benchmarks.checkpoints.torn_saves_rank:save_rounds", WORLD_SIZE, spec, folder / "ranks", limit_s
        )
    counts = {protocol: Counter[str]() for protocol in PROTOCOLS}
    for of_rank in by_rank:
        for protocol in PROTOCOLS:
            counts[protocol].update(of_rank[protocol])
    return _result(n, counts)


def _result(n: int, counts: dict[str, Counter[str]]) -> Result:
    figures = {f"{p}_{outcome}": float(counts[p][outcome]) for p in PROTOCOLS for outcome in OUTCOMES}
    figures |= {f"{p}_deaths": float(counts[p].total()) for p in PROTOCOLS}
    rows = [(TOLD[outcome], *(str(counts[p][outcome]) for p in PROTOCOLS)) for outcome in OUTCOMES]
    rows.append(("crashes", *(str(counts[p].total()) for p in PROTOCOLS)))
    title = "Checkpoint that a restart chooses after a crash during a save"
    table = Table(title, ("stock DeepSpeed", "Steerway"), tuple(rows))
    return Result(figures=figures, targets=TARGETS, n=n, tables=(table,))
