"""False node deaths: nodes of a Ray cluster that nothing happens to, at ten runnable processes per core.

A head and three workers as network namespaces, with the health checks and the keepalive of `control_plane.api`'s table
in force, and a run of two ranks. Every node that Ray declares dead, and every failed generation, is a false alarm.
"""

import os
import time

from benchmarks.catalogue import Say
from benchmarks.failures.busy import loaded
from benchmarks.harness.result import Bound, Result
from benchmarks.network.cluster_run import RANKS, ClusterRun
from benchmarks.network.machines import Rig
from benchmarks.recovery.diary import read_processes, steps_of_all
from control_plane.api.head_variables import environment
from control_plane.core.model.records import GenerationLost

WORKERS = 3
RUNNABLE_PER_CORE = 10
START_WAIT_S = 300.0
LOOK_EVERY_S = 30.0

TARGETS: dict[str, Bound] = {"false_node_deaths": {"max": 0}, "failed_generations": {"max": 0}}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` minutes. Raises `SteerwayError` if the cluster or the run does not start."""
    with Rig() as rig:
        run = ClusterRun(rig, WORKERS, environment())
        run.start({"checkpoint": {"every_steps": 100}})
        run.wait("training", START_WAIT_S, lambda: len(steps_of_all(read_processes(run.diaries), RANKS)) > 20)
        say(f"node_deaths: {n} min at {RUNNABLE_PER_CORE} runnable processes per core")
        began_s = time.monotonic()
        with loaded(RUNNABLE_PER_CORE) as loads:
            while time.monotonic() < began_s + 60 * n and run.complaint() is None:
                time.sleep(min(LOOK_EVERY_S, 60.0 * n))
        minutes = (time.monotonic() - began_s) / 60
        dead = [machine.name for machine in run.workers if run.declared_dead_s(machine.address) is not None]
        failed = sum(isinstance(entry.record, GenerationLost) for entry in run.journal())
        steps = len(steps_of_all(read_processes(run.diaries), RANKS))
    return result_of(n, minutes, len(dead), failed, steps, loads)


def result_of(n: int, minutes: float, dead: int, failed: int, steps: int, loads: list[float]) -> Result:
    """Return the figures and their targets; a count of 0 comes with its upper bound (95 %)."""
    figures = {
        "minutes": minutes,
        "false_node_deaths": float(dead),
        "failed_generations": float(failed),
        "false_node_deaths_per_node_hour_bound": 3 * 60 / (minutes * WORKERS) if not dead else float("inf"),
        "steps": float(steps),
        "load_1min_mean": sum(loads) / len(loads) if loads else 0.0,
        "load_1min_worst": max(loads, default=0.0),
        "cores": float(os.cpu_count() or 1),
    }
    return Result(figures, TARGETS, n)
