"""Processor seconds of each part of a cluster, and of all other processes of the machine."""

import time
from dataclasses import dataclass

import psutil

from cluster.record import read_record
from control_plane.config import Settings
from control_plane.core.model.errors import NotFound

PARTS = {
    "proxy": "ray::ProxyActor",
    "gateway": "ray::ServeReplica",
    "control": "ray::ControlActor",
    "ranks": "RayTrainWorker",
}
"""Substring of the title of each part's process. All other processes of the cluster are `rest`."""


@dataclass(frozen=True)
class Reading:
    """Processor seconds so far, at a time."""

    at_s: float
    by_process: dict[tuple[str, int], float]
    machine_s: float


def read(where: Settings) -> Reading:
    """Return the reading of this cluster's processes and the machine. Raises `NotFound` if no cluster is up."""
    record = read_record(where)
    if record is None:
        raise NotFound(f"no cluster is up on {where.home}")
    by_process: dict[tuple[str, int], float] = {}
    for process in record.members():
        try:
            title, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        part = next((name for name, mark in PARTS.items() if mark in title), "rest")
        by_process[part, process.pid] = times.user + times.system
    machine = psutil.cpu_times()
    return Reading(time.monotonic(), by_process, machine.user + machine.nice + machine.system)


def cores(before: Reading, after: Reading, own_s: float = 0.0) -> dict[str, float]:
    """Return how many cores each part used on average. `own_s`: that of the benchmark itself, including its client.

    A process that was started in between counts from its start, one that has ended does not count.
    """
    spent: dict[str, float] = dict.fromkeys((*PARTS, "rest"), 0.0)
    for (part, pid), seconds in after.by_process.items():
        spent[part] += seconds - before.by_process.get((part, pid), 0.0)
    span_s = after.at_s - before.at_s
    others_s = after.machine_s - before.machine_s - sum(spent.values()) - own_s
    return {part: seconds / span_s for part, seconds in spent.items()} | {"others": max(0.0, others_s) / span_s}
