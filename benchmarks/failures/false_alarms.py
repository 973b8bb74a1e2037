"""False alarms of failure detection in an undisturbed run of many minutes, with evaluations and saves.

The ranks' watchdogs, Ray's health checks and Ray Train's have their defaults; every failure in the journal is a false
alarm. `longest_gap_s`, between two steps of a rank, shows how near the watchdogs were to one.
"""

import time
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS
from benchmarks.harness.result import Bound, Result
from benchmarks.harness.training import shipped_config
from benchmarks.recovery.diary import RankProcess, read_processes, steps_of_all
from benchmarks.recovery.ours import steered
from benchmarks.recovery.recovery import SAVE_EVERY_STEPS, SETTLED_STEPS, wait_settled
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointFailed,
    GenerationLost,
    GenerationStarted,
    Record,
)

TELL_EVERY_S = 60.0
LOOK_EVERY_S = 5.0
TARGETS: dict[str, Bound] = {"false_alarms": {"max": 0}, "generations": {"min": 1, "max": 1}}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` minutes, or fewer if the run ends. Raises `SteerwayError` if cluster or run do not start."""
    with steered(say, "false-alarms", SAVE_EVERY_STEPS) as ours:
        wait_settled(ours, 0.0, SETTLED_STEPS)
        say(f"false_alarms: training without disturbances for {n} min")
        began_s = told_s = time.time()
        while (now_s := time.time()) < began_s + 60 * n and ours.complaint() is None:
            time.sleep(LOOK_EVERY_S)
            if now_s > told_s + TELL_EVERY_S:
                told_s = now_s
                say(f"false_alarms: {(now_s - began_s) / 60:.0f} min")
        minutes, records = (time.time() - began_s) / 60, [entry.record for entry in ours.journal()]
        return Result(
            figures_of_calm(minutes, records, read_processes(ours.folder)), {**TARGETS, "minutes": {"min": n}}, n
        )


def figures_of_calm(minutes: float, records: Sequence[Record], processes: Sequence[RankProcess]) -> dict[str, float]:
    """Return the figures from the journal and the diaries."""
    counts = {
        kind: float(sum(isinstance(record, kind) for record in records))
        for kind in (GenerationLost, GenerationStarted, CheckpointCommitted, CheckpointFailed)
    }
    steps = len(steps_of_all(processes, RANKS))
    return {
        "minutes": minutes,
        "steps": float(steps),
        "evaluations": float(steps // (evaluation_steps() or steps + 1)),
        "checkpoints": counts[CheckpointCommitted],
        "checkpoints_failed": counts[CheckpointFailed],
        "false_alarms": counts[GenerationLost],
        # With no alarm in so many hours, the rate is below 3 / hours with 95 % confidence.
        "false_alarms_per_hour_bound": 3 * 60 / minutes,
        "generations": counts[GenerationStarted],
        "longest_gap_s": max(map(longest_gap_s, processes), default=0.0),
    }


def evaluation_steps() -> int:
    """Return the shipped config's interval of evaluations; 0: never."""
    training = shipped_config().training
    return int(training.get("eval_steps", 0)) if training.get("eval_strategy") == "steps" else 0


def longest_gap_s(process: RankProcess) -> float:
    """Return the longest time between the ends of two steps of a process, including evaluations and saves."""
    ends = sorted(process.ends_s.values())
    return max((after - before for before, after in pairwise(ends)), default=0.0)
