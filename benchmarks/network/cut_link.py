"""A cut link: seconds from the cut of a rank's node to the first step on the other nodes, beside ours without the cure.

The machines are namespaces on a bridge (see `machines`): a head without CPUs, three workers with one CPU each, and two
ranks on two of them. The bridge stops forwarding one worker's port: no connection is reset, and nobody is told. Both
arms are Steerway with the same health checks on Ray's head. `without` is as it was before: no keepalive, and a group is
started whatever the nodes say. The seconds are from the ranks' diaries, the phases from the journal, and the death of
the node is when Ray declared it. After each cut the link heals and the worker joins again, as a new node.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.network.cluster_run import RANKS, ClusterRun
from benchmarks.network.machines import Rig
from benchmarks.recovery.diary import Recovery, latest, read_processes, recovery_of, steps_of_all
from control_plane.api.head_variables import environment
from control_plane.core.model.records import GenerationRecovered

WORKERS = 3
SAVE_EVERY_STEPS = 20
SETTLED_STEPS = 30
SPARES_WAIT_S = 20.0
"""Time for warm spares on the node that has joined: they import for some seconds."""

START_WAIT_S, BACK_WAIT_S = 300.0, 400.0
MOST_WITHOUT = 2
"""Cuts without the cure: each costs two to three minutes."""

WITHOUT = "benchmarks.scripts.launch_unguarded"
PHASES = ("detect", "re-form", "load", "first step")

TARGETS: dict[str, Bound] = {"ours_seconds_p50": {"max": 15}, "ours_seconds_worst": {"max": 20}}


@dataclass(frozen=True, slots=True)
class Cut:
    """Result of one cut. Seconds are counted from it; `dead_s` is when Ray declared the node dead, if it did."""

    recovery: Recovery
    phases_s: Mapping[str, float]
    dead_s: float | None
    load_1min: float


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` cuts of our arm, and up to `MOST_WITHOUT` of the other. Raises `SteerwayError`."""
    without_keepalive = {name: value for name, value in environment().items() if "keepalive" not in name}
    ours = _arm("ours", environment(), "ray_jobs.launch", n, say)
    without = _arm("without", without_keepalive, WITHOUT, 1 if quick else min(n, MOST_WITHOUT), say)
    return result_of(n, ours, without)


def _arm(name: str, variables: Mapping[str, str], launch: str, n: int, say: Say) -> list[Cut]:
    with Rig() as rig:
        say(f"cut_link: {name}: starting a head and {WORKERS} workers ..")
        run = ClusterRun(rig, WORKERS, variables)
        run.start({"checkpoint": {"every_steps": SAVE_EVERY_STEPS}}, launch=launch)
        cuts: list[Cut] = []
        for number in range(n):
            _wait_settled(run)
            time.sleep(SPARES_WAIT_S)
            cuts.append(_cut(run, number, joins=number + 1 < n))
            phases = ", ".join(f"{phase} {length:.1f}" for phase, length in cuts[-1].phases_s.items())
            dead = f"{cuts[-1].dead_s:.1f} s" if cuts[-1].dead_s is not None else "not yet"
            say(
                f"cut_link: {name}: {number + 1} of {n}: {cuts[-1].recovery.seconds:.1f} s ({phases}); node dead for "
                f"Ray: {dead}; load {cuts[-1].load_1min:.1f}"
            )
        return cuts


def _wait_settled(run: ClusterRun) -> None:
    since_s = time.time()

    def settled() -> bool:
        ends = steps_of_all(latest(read_processes(run.diaries)).values(), RANKS)
        return sum(at_s > since_s for at_s in ends.values()) >= SETTLED_STEPS

    run.wait("training", START_WAIT_S, settled)


def _cut(run: ClusterRun, number: int, joins: bool) -> Cut:
    """Cut the link of rank 0's node and of another rank's in turns, wait, heal it, and have the node join again, unless
    it was the last cut."""
    victim, load_1min = run.carriers()[number % RANKS], os.getloadavg()[0]
    cut_s = time.time()
    victim.link.cut()

    def back() -> Recovery | None:
        return recovery_of(read_processes(run.diaries), cut_s, cut_s, RANKS)

    run.wait("a step after the cut", BACK_WAIT_S, back)
    recovery = back()
    assert recovery is not None
    run.wait("the recovery's record", 30.0, lambda: _recoveries(run) > number)
    phases_s = next(e.record.phases_s for e in run.journal()[::-1] if isinstance(e.record, GenerationRecovered))
    time.sleep(max(0.0, cut_s + 15.0 - time.time()))  # by then Ray has declared the node dead
    dead_s = run.declared_dead_s(victim.address)
    victim.link.heal()
    if joins:
        run.join(victim)
    return Cut(recovery, phases_s, dead_s - cut_s if dead_s is not None and dead_s > cut_s else None, load_1min)


def _recoveries(run: ClusterRun) -> int:
    return sum(isinstance(entry.record, GenerationRecovered) for entry in run.journal())


def result_of(n: int, ours: Sequence[Cut], without: Sequence[Cut]) -> Result:
    """Return the figures of both arms, and their targets."""
    figures = _figures("ours", ours) | _figures("without", without)
    figures["without_over_ours"] = figures["without_seconds_p50"] / figures["ours_seconds_p50"]
    names = [name.removeprefix("ours_") for name in figures if name.startswith("ours_")]
    rows = tuple((name, f"{figures[f'ours_{name}']:.2f}", f"{figures[f'without_{name}']:.2f}") for name in names)
    return Result(figures, TARGETS, n, (Table("cut link of a rank's node", ("Steerway", "without the cure"), rows),))


def _figures(arm: str, cuts: Sequence[Cut]) -> dict[str, float]:
    seconds = [cut.recovery.seconds for cut in cuts]
    figures = {
        "cuts": float(len(cuts)),
        "seconds_p50": median(seconds),
        "seconds_worst": max(seconds),
    }
    for phase in PHASES:
        name = phase.replace("-", "").replace(" ", "_")
        figures[f"{name}_s_p50"] = median(cut.phases_s.get(phase, 0.0) for cut in cuts)
    dead = [cut.dead_s for cut in cuts if cut.dead_s is not None]
    figures |= {
        "node_dead_s_p50": median(dead) if dead else float("nan"),
        "steps_lost_worst": float(max(cut.recovery.lost_steps for cut in cuts)),
        "load_1min_worst": max(cut.load_1min for cut in cuts),
    }
    return {f"{arm}_{name}": value for name, value in figures.items()}
