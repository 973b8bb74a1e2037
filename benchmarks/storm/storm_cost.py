"""What each part of a cluster costs the machine meanwhile: processor seconds by part, and those of everybody else."""

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
"""By what stands in the title of their process. Whatever else belongs to the cluster is `rest`."""


@dataclass(frozen=True)
class Reading:
    """Processor seconds so far, at a moment."""

    at_s: float
    by_process: dict[tuple[str, int], float]
    machine_s: float


def read(where: Settings) -> Reading:
    """All of this cluster's processes, and the machine. Raises `NotFound` if no cluster is up."""
    record = read_record(where)
    if record is None:
        raise NotFound(f"no cluster is up on {where.home}")
    found: dict[tuple[str, int], float] = {}
    for process in record.members():
        try:
            title, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        part = next((name for name, mark in PARTS.items() if mark in title), "rest")
        found[part, process.pid] = times.user + times.system
    machine = psutil.cpu_times()
    return Reading(time.monotonic(), found, machine.user + machine.nice + machine.system)


def cores(before: Reading, after: Reading, own_s: float = 0.0) -> dict[str, float]:
    """How many cores each part kept busy on average. `own_s` is what the benchmark itself took, the client included.

    A process that was not there before counts from its beginning, one that has gone since not at all.
    """
    spent: dict[str, float] = dict.fromkeys((*PARTS, "rest"), 0.0)
    for (part, pid), seconds in after.by_process.items():
        spent[part] += seconds - before.by_process.get((part, pid), 0.0)
    span_s = after.at_s - before.at_s
    others_s = after.machine_s - before.machine_s - sum(spent.values()) - own_s
    return {part: seconds / span_s for part, seconds in spent.items()} | {"others": max(0.0, others_s) / span_s}
