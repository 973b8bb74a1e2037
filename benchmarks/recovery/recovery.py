"""Recovery from SIGKILL of a rank's node on a cluster of three: seconds to the first new step, beside stock.

Both arms train the model of the shipped config on two ranks and save every 20 steps. Every process of a rank keeps a
diary, and the seconds of both arms come from these alone: from the fault to the end, on the last rank, of the first
optimizer step that new processes make; and to the step that the run had reached. The phases in between are from the
journal (Steerway), and from the diaries and a callback of Ray Train's controller (stock). All faults of an arm hit
the same run; after each, a new node replaces the lost one, and Steerway's warm spares get a bounded time.

The phase `load` lasts until the first new step begins; for stock, without spares, it includes imports.

The head has no CPUs, so no rank runs on it. Ray Train packs ranks: if a node has two CPUs, both ranks run on one, and
both die with it; `ranks_lost_per_fault` is their number.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.recovery.diary import Recovery, latest, read_processes, recovery_of, steps_of_all
from benchmarks.recovery.faults import TOLD, Fault, living, strike
from control_plane.core.model.errors import SteerwayError
from control_plane.core.rules.recovery import PHASES

SAVE_EVERY_STEPS = 20
SETTLED_STEPS = 30
"""Smallest number of steps before a fault: more than the checkpoint interval."""

START_WAIT_S = 400.0
RECOVERY_WAIT_S = 300.0
LOOK_EVERY_S = 0.5
QUICK_STOCK_FAULTS = 1

TARGETS: dict[str, Bound] = {
    "ours_seconds_worst": {"max": 8},
    "stock_over_ours": {"min": 5},
    # One interval, and another one if its checkpoint was still being written.
    "ours_steps_lost_worst": {"max": 2 * SAVE_EVERY_STEPS},
    "ours_old_ranks_left": {"max": 0},
}


class Arm(Protocol):
    """Training on a cluster, with diaries in `folder`."""

    name: str
    folder: Path

    def complaint(self) -> str | None:
        """Return the reason why it has ended, or None."""
        ...

    def log(self) -> str:
        """Return the end of its log."""
        ...

    def ranks_by_node(self) -> dict[str, list[int]]:
        """Return the pids of the ranks, by the name of their node."""
        ...

    def kill_node(self, name: str) -> float:
        """Kill a node, and return the Unix time."""
        ...

    def phases(self, killed_s: float) -> tuple[float, float | None, float | None]:
        """Return the Unix times of detection, new ranks and restored state. None: use those of the diaries."""
        ...

    def mend(self, node_lost: bool) -> bool:
        """Replace a lost node; return whether there are warm spares for the next start."""
        ...


@dataclass(frozen=True, slots=True)
class RecoveryTrial:
    """Result of one fault. `warm`: spares were ready before it. `old_left`: surviving processes of the lost ranks."""

    recovery: Recovery
    ranks_lost: int
    warm: bool
    old_left: int
    load_1min: float


class NotBack(SteerwayError):
    """The run did not recover in time."""


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` faults in each arm. Raises `SteerwayError` if an arm does not start or recover."""
    return measure_fault("node", n, QUICK_STOCK_FAULTS if quick else n, TARGETS, say)


def measure_fault(fault: Fault, n: int, stock_n: int, targets: dict[str, Bound], say: Say) -> Result:
    """Measure `n` faults of one kind in Steerway's arm and `stock_n` in the other."""
    from benchmarks.recovery.ours import steered
    from benchmarks.recovery.stock import stock

    ours = faults(lambda: steered(say, f"recovery-{fault}", SAVE_EVERY_STEPS), fault, n, RECOVERY_WAIT_S, say)
    theirs = faults(lambda: stock(say, SAVE_EVERY_STEPS), fault, stock_n, RECOVERY_WAIT_S, say)
    return result_of(fault, n, ours, theirs, targets)


def faults(
    open_arm: Callable[[], AbstractContextManager[Arm]], fault: Fault, n: int, limit_s: float, say: Say
) -> list[RecoveryTrial]:
    """Start an arm, inject `n` faults, and end it."""
    chance = random.Random(n)
    with open_arm() as arm:
        say(f"recovery: {arm.name}: waiting until it trains ..")
        wait_settled(arm, 0.0, SETTLED_STEPS)
        warm = arm.mend(node_lost=False)
        trials: list[RecoveryTrial] = []
        for number in range(1, n + 1):
            since_s = time.time()
            wait_settled(arm, since_s, SETTLED_STEPS + chance.randrange(SAVE_EVERY_STEPS))
            trials.append(_trial(arm, fault, warm, limit_s, say))
            phases = ", ".join(f"{phase} {length:.1f}" for phase, length in trials[-1].recovery.split().items())
            say(f"recovery: {arm.name}: {number} of {n}: {trials[-1].recovery.seconds:.1f} s ({phases})")
            warm = number == n or arm.mend(node_lost=fault == "node")
        return trials


def wait_settled(arm: Arm, since_s: float, steps: int) -> None:
    """Wait until the ranks have made so many steps since that time. Raises `SteerwayError` if they do not."""
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline:
        now = latest(read_processes(arm.folder)).values()
        ended = [at_s for at_s in steps_of_all(now, RANKS).values() if at_s > since_s]
        if len(ended) >= steps:
            return
        if complaint := arm.complaint():
            raise SteerwayError(complaint)
        time.sleep(LOOK_EVERY_S)
    raise SteerwayError(f"{arm.name} did not train within {START_WAIT_S:g} s; its log ends:\n{arm.log()}")


def _trial(arm: Arm, fault: Fault, warm: bool, limit_s: float, say: Say) -> RecoveryTrial:
    processes = latest(read_processes(arm.folder))
    places = arm.ranks_by_node()
    node = next((name for name, pids in places.items() if processes[0].pid in pids), None)
    if node is None:
        raise SteerwayError(f"cannot find the node of rank 0 of {arm.name}")
    load_1min = os.getloadavg()[0]
    lost = places[node] if fault == "node" else [processes[RANKS - 1].pid]
    say(f"recovery: {arm.name}: {TOLD[fault]} with {len(lost)} of {RANKS} ranks, at load {load_1min:.1f}")
    killed_s = arm.kill_node(node) if fault == "node" else strike(lost[0], fault)
    wait_back(arm, killed_s, limit_s)
    detected_s, begun_s, loaded_s = arm.phases(killed_s)
    recovery = recovery_of(read_processes(arm.folder), killed_s, detected_s, RANKS)
    assert recovery is not None
    recovery = replace(recovery, begun_s=begun_s or recovery.begun_s, loaded_s=loaded_s or recovery.loaded_s)
    return RecoveryTrial(recovery, len(lost), warm, living([process.pid for process in processes.values()]), load_1min)


def wait_back(arm: Arm, killed_s: float, limit_s: float) -> None:
    """Wait until the run is back at its step. Raises `NotBack`, or `SteerwayError` if it has ended."""
    while recovery_of(read_processes(arm.folder), killed_s, killed_s, RANKS) is None:
        if complaint := arm.complaint():
            raise SteerwayError(complaint)
        if time.time() > killed_s + limit_s:
            raise NotBack(
                f"{arm.name} did not recover within {limit_s:g} s after the fault; its log ends:\n{arm.log()}"
            )
        time.sleep(LOOK_EVERY_S)


def result_of(
    fault: Fault,
    n: int,
    ours: Sequence[RecoveryTrial],
    theirs: Sequence[RecoveryTrial],
    targets: Mapping[str, Bound],
    gave_up_after_s: float = 0.0,
) -> Result:
    """Return the figures of both arms. Without any of `theirs`, stock did not recover within `gave_up_after_s`."""
    stock = figures_of("stock", theirs) if theirs else {"stock_seconds_p50": gave_up_after_s}
    figures = figures_of("ours", ours) | stock
    figures |= {
        "stock_faults": len(theirs),
        "stock_gave_up": int(not theirs),
        "stock_over_ours": figures["stock_seconds_p50"] / figures["ours_seconds_p50"],
        "save_every_steps": SAVE_EVERY_STEPS,
        "ours_faults_without_warm_spares": sum(not trial.warm for trial in ours),
    }
    both = [name.removeprefix("stock_") for name in stock if name.replace("stock", "ours", 1) in figures]
    rows = tuple((name, f"{figures[f'ours_{name}']:.2f}", f"{figures[f'stock_{name}']:.2f}") for name in both)
    return Result(figures, dict(targets), n, (Table(TOLD[fault], ("Steerway", "stock"), rows),))


def figures_of(arm: str, trials: Sequence[RecoveryTrial]) -> dict[str, float]:
    """Return medians and worst cases of one arm: seconds from the fault, and their phases."""
    recoveries = [trial.recovery for trial in trials]
    seconds = [one.seconds for one in recoveries]
    back = [one.seconds_to_be_back for one in recoveries]
    lost = [one.lost_steps for one in recoveries]
    figures: dict[str, float] = {
        "seconds_p50": median(seconds),
        "seconds_worst": max(seconds),
        "seconds_to_be_back_p50": median(back),
        "seconds_to_be_back_worst": max(back),
    }
    for phase in PHASES:
        figures[f"{phase.replace('-', '').replace(' ', '_')}_s_p50"] = median(one.split()[phase] for one in recoveries)
    figures |= {
        "steps_lost_p50": median(lost),
        "steps_lost_worst": max(lost),
        "ranks_lost_per_fault": sum(trial.ranks_lost for trial in trials) / len(trials),
        "old_ranks_left": sum(trial.old_left for trial in trials),
        "load_1min_p50": median(trial.load_1min for trial in trials),
        "load_1min_worst": max(trial.load_1min for trial in trials),
    }
    return {f"{arm}_{name}": value for name, value in figures.items()}
