"""Faults of the storm of faults: drawn from a seed, and sent to the processes of one cluster.

A part is found by the title of its process, as Ray and the keeper name them. If a part is being restarted, it has no
process: then the fault is counted as missed.
"""

import contextlib
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from cluster.record import read_record
from control_plane.config import Settings

PARTS = {
    "rank": "RayTrainWorker",
    "control server": "ray::ControlActor",
    "replica": "ray::ServeReplica",
    "proxy": "ray::ProxyActor",
    "Serve controller": "ray::ServeController",
    "console": "-m ui",
}
"""Substring of the title of each part's process."""

SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
LEAST_GAP_S, MOST_GAP_S = 8.0, 25.0


@dataclass(frozen=True)
class StormFault:
    """Fault: seconds after the beginning of the storm, the part, the signal, and a number that chooses a rank."""

    at_s: float
    part: str
    signal: signal.Signals
    chance: float

    def __str__(self) -> str:
        return f"{self.at_s:.0f} s: {self.signal.name} to the {self.part}"


def plan(seed: int, seconds: float) -> Iterator[StormFault]:
    """Yield the faults of a storm, in order: the same ones for the same seed."""
    draw = random.Random(seed)
    at_s = draw.uniform(LEAST_GAP_S, MOST_GAP_S)
    while at_s < seconds:
        yield StormFault(at_s, draw.choice(list(PARTS)), draw.choice(SIGNALS), draw.random())
        at_s += draw.uniform(LEAST_GAP_S, MOST_GAP_S)


def strike(where: Settings, fault: StormFault) -> int | None:
    """Send a fault. Returns the pid, or None if there is no process of that part at the moment."""
    processes = living(where, fault.part)
    if not processes:
        return None
    chosen = processes[int(fault.chance * len(processes))]
    with contextlib.suppress(psutil.Error):
        chosen.send_signal(fault.signal)
        return int(chosen.pid)
    return None


def living(where: Settings, part: str) -> list[psutil.Process]:
    """Return the processes of a part that are neither stopped nor dead, by pid."""
    of_part = []
    for process in members(where):
        with contextlib.suppress(psutil.Error):
            states = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            if PARTS[part] in " ".join(process.cmdline()) and process.status() not in states:
                of_part.append(process)
    return sorted(of_part, key=lambda process: process.pid)


def stopped(where: Settings) -> list[psutil.Process]:
    """Return the stopped processes of the cluster."""
    in_stop = []
    for process in members(where):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                in_stop.append(process)
    return in_stop


def members(where: Settings) -> list[psutil.Process]:
    """Return every process of the cluster; none if it is not up."""
    record = read_record(where)
    return [] if record is None else record.members()
