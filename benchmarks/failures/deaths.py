"""Failure detection: SIGSTOP and SIGKILL of a rank with loader workers, seconds until its peer and all others ended.

Two ranks over gloo, each with two loader workers, which inherit its connections, and with the default settings. The
faults alternate, and so do the ranks, at random moments.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.failures.deaths_ranks import RANKS
from benchmarks.harness.ports import free_port
from benchmarks.harness.quantiles import midpoint
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.recovery.faults import TOLD, Fault, strike
from control_plane.core.model.errors import SteerwayError
from ray_jobs.monitor.processes import status_of

FAULTS: tuple[Fault, ...] = ("stop", "rank")
FOUND_WITHIN_S = 6.0
START_WAIT_S, END_WAIT_S = 90.0, 60.0
LEAST_LIFE_S, MOST_LIFE_S = 1.0, 4.0
POLL_S = 0.01

TARGETS: dict[str, Bound] = {
    "stop_found_s_worst": {"max": FOUND_WITHIN_S},
    "rank_found_s_worst": {"max": FOUND_WITHIN_S},
    "left_behind": {"max": 0},
}


@dataclass(frozen=True, slots=True)
class DetectionTrial:
    """Result of one fault. `found_s`: the peer has ended; `over_s`: all others too. Infinite: not in time."""

    fault: Fault
    rank: int
    found_s: float
    over_s: float
    reason: str


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` faults of each kind. Raises `SteerwayError` if ranks do not start."""
    chance, folder = random.Random(n), Path(tempfile.mkdtemp(prefix="steerway-bench-"))
    trials: list[DetectionTrial] = []
    try:
        with _forking_process(folder) as forking:
            for number in range(n * len(FAULTS)):
                fault, rank = FAULTS[number % 2], number // 2 % RANKS
                trials.append(_trial(forking, folder, str(number), fault, rank, chance))
                times = f"peer ended after {trials[-1].found_s:.2f} s, all after {trials[-1].over_s:.2f} s"
                say(f"deaths: {TOLD[fault]} {rank}, {number // 2 + 1} of {n}: {times}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result_of(n, trials)


def result_of(n: int, trials: list[DetectionTrial]) -> Result:
    """Return the figures of all trials."""
    figures: dict[str, float] = {"left_behind": sum(trial.over_s > END_WAIT_S for trial in trials)}
    rows: list[tuple[str, ...]] = []
    for fault in FAULTS:
        found_s = [trial.found_s for trial in trials if trial.fault == fault]
        over = [trial.over_s for trial in trials if trial.fault == fault]
        in_time = sum(one <= FOUND_WITHIN_S for one in found_s)
        figures |= {
            f"{fault}_found_s_least": min(found_s),
            f"{fault}_found_s_p50": midpoint(found_s),
            f"{fault}_found_s_worst": max(found_s),
            f"{fault}_over_s_worst": max(over),
            f"{fault}_found_in_time": in_time,
            # With none missed of so many, the share that would be is below 3 / n with 95 % confidence.
            f"{fault}_missed_share_bound": 3 / len(found_s) if in_time == len(found_s) else 1.0,
        }
        times_s = (min(found_s), midpoint(found_s), max(found_s), max(over))
        rows.append((TOLD[fault], *(f"{time_s:.2f}" for time_s in times_s)))
    figures["load_1min"] = os.getloadavg()[0]
    table = Table("seconds from the fault", ("peer: least", "median", "worst", "all: worst"), tuple(rows))
    return Result(figures, TARGETS, n, (table,))


@contextmanager
def _forking_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.failures.deaths_ranks", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _trial(
    forking: "subprocess.Popen[str]", folder: Path, name: str, fault: Fault, rank: int, chance: random.Random
) -> DetectionTrial:
    assert forking.stdin is not None
    forking.stdin.write(f"{name} {free_port()}\n")
    forking.stdin.flush()
    pids = _wait_training(folder / name)
    try:
        time.sleep(chance.uniform(LEAST_LIFE_S, MOST_LIFE_S))
        peer, everything = pids[1 - rank]["rank"], _all(pids)
        struck_s = strike(pids[rank]["rank"], fault)
        found_s = _ended_after([peer], struck_s)
        over_s = _ended_after(everything, struck_s)
    finally:
        for pid in _all(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return DetectionTrial(fault, rank, found_s, over_s, _said(folder / name))


def _all(pids: list[dict[str, Any]]) -> list[int]:
    return [int(pid) for of_rank in pids for pid in (of_rank["rank"], *of_rank["workers"])]


def _wait_training(folder: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + START_WAIT_S
    paths = [folder / f"{rank}.json" for rank in range(RANKS)]
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
            raise SteerwayError(f"the ranks did not train within {START_WAIT_S:g} s; their logs end:\n{logs}")
        time.sleep(POLL_S)
    return [json.loads(path.read_text()) for path in paths]


def _ended_after(pids: list[int], struck_s: float) -> float:
    while any(status_of(pid) for pid in pids):
        if time.time() - struck_s > END_WAIT_S:
            return float("inf")
        time.sleep(POLL_S)
    return time.time() - struck_s


def _said(folder: Path) -> str:
    for path in sorted(folder.glob("*.died.json")):
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads(path.read_text())["reason"])
    return ""
