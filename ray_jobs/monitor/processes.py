"""State and children of processes, read from Linux's /proc.

Standard library only: the ranks' monitors, which import nothing else, use this.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
DEAD_STATES = "ZXx"


@dataclass(frozen=True, slots=True)
class Status:
    """State of a process. `started` distinguishes it from a later one with the same pid."""

    state: str
    parent: int
    session: int
    cpu_s: float
    started: int

    @property
    def is_stopped(self) -> bool:
        """True if it is stopped by a signal. One that a debugger holds ("t") is not stopped in this sense."""
        return self.state == "T"


def status_of(pid: int) -> Status | None:
    """Return the state of a process; None if there is no such process, or it is a zombie.

    Raises `OSError` if the state cannot be read, such as when too many files are open.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets, and may contain brackets.
    fields = content[content.rindex(b")") + 2 :].split()
    state = fields[0].decode()
    if state in DEAD_STATES:
        return None
    used_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return Status(state, int(fields[1]), int(fields[3]), used_s, int(fields[19]))


def is_same(pid: int, started: int) -> bool:
    """Return whether the process with that start time is alive."""
    status = status_of(pid)
    return status is not None and status.started == started


def machine() -> str:
    """Return an identifier that is equal for processes that share pids and the loopback interface."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return " ".join((boot, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")))
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of all threads of a process."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return children


class Descendants:
    """Descendants of a rank in its session, which are killed when the rank has died.

    A process with a session of its own, as daemons have, is left alone: it is meant to outlive the rank.
    """

    def __init__(self, pid: int, session: int) -> None:
        self._pid, self._session = pid, session
        self._known: dict[int, int] = {}

    def look(self) -> None:
        """Update the known descendants."""
        known: dict[int, int] = {}
        todo = [self._pid]
        while todo:
            for child in children_of(todo.pop()):
                status = status_of(child)
                if status is not None and status.session == self._session and child not in known:
                    known[child] = status.started
                    todo.append(child)
        # Keeps those that `add` has registered since.
        self._known = {pid: at for pid, at in self._known.items() if is_same(pid, at)} | known

    def add(self, pid: int) -> None:
        """Register a forked process."""
        if status := status_of(pid):
            self._known[pid] = status.started

    def end(self) -> list[int]:
        """Kill the remaining descendants and return their pids."""
        ended = []
        for pid, started in self._known.items():
            status = status_of(pid)
            if status is None or (status.started, status.session) != (started, self._session):
                continue
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
        return ended
