"""False positives of failure detection: ranks that are slow, busy or hold the GIL, at four times the machine's load.

A steered Trainer on two ranks over gloo, with the default settings of failure detection; see `busy_rank` for the
disturbances. Every rank that is ended by its watchdog is a false positive: nothing is stopped or killed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result
from control_plane.core.model.errors import SteerwayError
from ray_jobs.process.timeouts import HANG_AFTER_S

RANKS = 2
LOCK_S, CALLBACK_S, SAVE_S = 30.0, 200.0, 60.0
QUICK_S = (8.0, 15.0, 8.0)
SAVE_EVERY_STEPS = 200
LOAD_FACTOR = 4
"""Runnable processes per core."""

LOOK_EVERY_S = 10.0
ENDS_WITHIN_S = 600.0

TARGETS: dict[str, Bound] = {"false_deaths": {"max": 0}}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` minutes. Raises `SteerwayError` if the ranks fail without a verdict of the watchdog."""
    from benchmarks.failures.busy_rank import schedule

    folder = Path(tempfile.mkdtemp(prefix="steerway-bench-"))
    lock_s, callback_s, save_s = QUICK_S if quick else (LOCK_S, CALLBACK_S, SAVE_S)
    plan = schedule(n, lock_s, callback_s)
    spec: dict[str, Any] = {
        "folder": str(folder),
        "minutes": n,
        "plan": [asdict(disturbance) for disturbance in plan],
        "save_s": save_s,
        "save_every": SAVE_EVERY_STEPS,
        "hang_after_s": HANG_AFTER_S,
    }
    counts = Counter(disturbance.kind for disturbance in plan)
    what = ", ".join(f"{count} x {kind}" for kind, count in counts.items())
    say(f"busy: {n} min, with {what} and a last save of {save_s:g} s at the end")
    try:
        with loaded() as loads:
            answers = _run(folder, spec, 60 * n + ENDS_WITHIN_S)
        deaths = [json.loads(path.read_text())["reason"] for path in folder.glob("runs/*/logs/*.died.json")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for reason in deaths:
        say(f"busy: {reason}")
    if not answers and not deaths:
        raise SteerwayError("the ranks ended without an exit reason of the watchdog")
    return result_of(n, counts, answers, len(deaths), loads)


def _run(folder: Path, spec: dict[str, Any], limit_s: float) -> list[dict[str, Any]]:
    try:
        return run_ranks("benchmarks.failures.busy_rank:train", RANKS, spec, folder / "ranks", limit_s)
    except SteerwayError:
        if list(folder.glob("runs/*/logs/*.died.json")):
            return []
        raise


def result_of(n: int, planned: Counter[str], answers: list[dict[str, Any]], deaths: int, loads: list[float]) -> Result:
    """Return the figures and their targets."""
    chances = sum(planned.values()) + 1  # the last save
    first = answers[0] if answers else {}
    minutes = first.get("seconds", 60.0 * n) / 60
    figures = {
        "minutes": minutes,
        "false_deaths": float(deaths),
        "held_locks": float(planned["lock"]),
        "long_callbacks": float(planned["callback"]),
        "hindrances_survived": float(first.get("done", 0) + 1 if answers else 0),
        "steps": float(first.get("steps", 0)),
        "checkpoints": float(first.get("checkpoints", 0)),
        "load_1min_mean": sum(loads) / len(loads) if loads else 0.0,
        "cores": float(os.cpu_count() or 1),
        # With none in so many, 95 % confidence.
        "false_deaths_per_hindrance_bound": 3 / chances if not deaths else 1.0,
        "false_deaths_per_hour_bound": 3 * 60 / minutes if not deaths else float("inf"),
    }
    targets = TARGETS | {"hindrances_survived": Bound(min=chances)}
    return Result(figures, targets, n)


@contextmanager
def loaded(per_core: int = LOAD_FACTOR) -> Iterator[list[float]]:
    """Keep so many runnable processes per core, including other users'; yield the measured loads."""
    wanted, loads = per_core * (os.cpu_count() or 1), list[float]()
    hogs: list[subprocess.Popen[bytes]] = []
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            loads.append(os.getloadavg()[0])
            missing = wanted - running()
            while missing > 0:
                hogs.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]))
                missing -= 1
            while missing < 0 and hogs:
                _end(hogs.pop())
                missing += 1
            over.wait(LOOK_EVERY_S)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield loads
    finally:
        over.set()
        keeper.join()
        while hogs:
            _end(hogs.pop())


def running() -> int:
    """Return how many threads of this machine are runnable now."""
    return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
