"""Processes of a cluster: identified by pid and start time, found by environment or command line, ended in time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import psutil
from pydantic import BaseModel, ConfigDict

from cluster.environment import MARK

START_TIME_SLACK_S = 1.0
"""Start times are derived from the clock, which may be corrected a little between two readings."""

TERM_WAIT_S = 4.0
"""Grace period between SIGTERM and SIGKILL. A kill loses nothing; it is only less tidy."""

KILL_WAIT_S = 3.0
STOP_WAIT_S = 2.0
KILL_ROUNDS = 5
"""A dying parent may have started one more child; each round looks again."""


class ProcessMark(BaseModel):
    """Identity of a process, also against a later one with the same pid. `created_s` is Unix time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> "ProcessMark":
        """Return the mark of a living process. Raises `psutil.NoSuchProcess`."""
        return cls(pid=pid, created_s=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """Return the process, or None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_s) < START_TIME_SLACK_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def find_members(cluster: str, roots: Iterable[ProcessMark] = (), temp_dir: str | None = None) -> list[psutil.Process]:
    """Return every living process of a cluster, except this one and its ancestors: see `find_carriers`."""
    return find_carriers({MARK: cluster}, roots, temp_dir)


def find_carriers(
    marks: Mapping[str, str], roots: Iterable[ProcessMark] = (), temp_dir: str | None = None
) -> list[psutil.Process]:
    """Return every living process with these variables in its environment, a root as ancestor, or the folder in argv.

    Three criteria, because each can fail: the environment (a process title may overwrite it), the ancestors (a driver
    whose parent died has none), the private folder in the command line.
    """
    members: dict[int, psutil.Process] = {}
    for root in roots:
        members |= {process.pid: process for process in _with_descendants(root)}
    for process in _own_processes():
        if process.pid not in members and _carries(process, marks, temp_dir):
            members[process.pid] = process
    this = psutil.Process()
    for process in (this, *this.parents()):
        members.pop(process.pid, None)
    return list(members.values())


def end_members(cluster: str, roots: Iterable[ProcessMark] = (), temp_dir: str | None = None) -> list[int]:
    """End every process of a cluster by SIGTERM, then SIGKILL. Returns the pids that are still there."""
    roots = list(roots)
    return end_processes(lambda: find_members(cluster, roots, temp_dir))


def end_processes(find: Callable[[], list[psutil.Process]]) -> list[int]:
    """End the processes that `find` returns by SIGTERM, then SIGKILL, until it returns none. Returns surviving pids."""
    members = find()
    _signal(members, psutil.Process.terminate)
    psutil.wait_procs(members, timeout=TERM_WAIT_S)
    return kill_processes(lambda: [*members, *find()])


def kill_processes(find: Callable[[], list[psutil.Process]]) -> list[int]:
    """Kill the processes that `find` returns until it returns none. Returns surviving pids."""
    members: list[psutil.Process] = []
    for _ in range(KILL_ROUNDS):
        members = _living({*members, *find()})
        if not members:
            return []
        _signal(members, psutil.Process.kill)
        psutil.wait_procs(members, timeout=KILL_WAIT_S)
    return [process.pid for process in _living(members)]


def stop_processes(find: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """Stop the processes that `find` returns (SIGSTOP), also those started meanwhile, and return them.

    Waits until the kernel shows them as stopped, for which each must have been scheduled once more.
    """
    stopped: set[psutil.Process] = set()
    for _ in range(KILL_ROUNDS):
        running = [process for process in find() if process not in stopped]
        if not running:
            break
        _signal(running, psutil.Process.suspend)
        stopped |= set(running)
    deadline = time.monotonic() + STOP_WAIT_S
    while time.monotonic() < deadline and any(_is_moving(process) for process in stopped):
        time.sleep(0.01)
    return sorted(_living(stopped), key=lambda process: process.pid)


def _is_moving(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def continue_processes(processes: Iterable[psutil.Process]) -> None:
    """Resume stopped processes (SIGCONT)."""
    _signal(processes, psutil.Process.resume)


def _with_descendants(root: ProcessMark) -> list[psutil.Process]:
    process = root.process()
    if process is None:
        return []
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def _own_processes() -> Iterator[psutil.Process]:
    """Yield the processes of this user: the cluster has no others."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _carries(process: psutil.Process, marks: Mapping[str, str], temp_dir: str | None) -> bool:
    try:
        if marks.items() <= process.environ().items():
            return True
        return temp_dir is not None and any(temp_dir in word for word in process.cmdline())
    except (psutil.Error, OSError):
        return False


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            send(process)


def _living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    living = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living
