"""Faults of the recovery benchmark, the same for both arms, with their times."""

import os
import signal
import time
from collections.abc import Callable
from typing import Literal

import psutil

from cluster.processes import kill_processes, stop_processes
from control_plane.core.model.errors import SteerwayError

Fault = Literal["node", "rank", "stop"]
TOLD = {"node": "SIGKILL of a rank's node", "rank": "SIGKILL of a rank", "stop": "SIGSTOP of a rank"}


def kill_all(find: Callable[[], list[psutil.Process]]) -> float:
    """Kill the processes that `find` returns, as `steer chaos kill-node` does; return the Unix time.

    All are stopped before any is killed, so that none can report another's death; training stops then, so that is the
    time of the fault. Raises `SteerwayError` if a process survives.
    """
    members = find()
    killed_s = time.time()
    _signal(members, signal.SIGSTOP)
    _signal(members, signal.SIGKILL)
    left = kill_processes(lambda: [*members, *stop_processes(find)])
    if left:
        raise SteerwayError(f"these processes of a node cannot be killed: {', '.join(map(str, left))}")
    return killed_s


def strike(pid: int, fault: Fault) -> float:
    """Kill or stop one rank, and return the Unix time. Raises `SteerwayError` if it has ended by itself."""
    struck_s = time.time()
    try:
        os.kill(pid, signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
    except ProcessLookupError:
        raise SteerwayError(f"rank process {pid} ended before the fault") from None
    return struck_s


def living(pids: list[int]) -> int:
    """Return how many of these processes are alive."""
    return sum(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # it has ended, which is what is wanted
