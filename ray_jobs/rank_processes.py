"""Processes as Linux shows them in /proc: what state a rank is in, and what it has left behind.

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
    """One process at one moment. `started` tells it from a later one of the same number."""

    state: str
    parent: int
    session: int
    cpu_s: float
    started: int

    @property
    def is_stopped(self) -> bool:
        """By a signal. Under a debugger ("t") somebody looks at it."""
        return self.state == "T"


def status_of(pid: int) -> Status | None:
    """What it does; None if there is no such process, or it has ended and nobody has asked how.

    Raises `OSError` if that cannot be said: no more files can be opened, say.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Its name stands in brackets, and may hold any.
    fields = content[content.rindex(b")") + 2 :].split()
    state = fields[0].decode()
    if state in DEAD_STATES:
        return None
    used_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return Status(state, int(fields[1]), int(fields[3]), used_s, int(fields[19]))


def is_same(pid: int, started: int) -> bool:
    """Whether that very process lives."""
    status = status_of(pid)
    return status is not None and status.started == started


def machine() -> str:
    """The same for processes that see each other's numbers, and reach each other by the loopback."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return " ".join((boot, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")))
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Those that it, or one of its threads, has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


class Offspring:
    """What a rank has started: what is in its session ends when the rank has died.

    A process that has begun a session of its own, as daemons do, was meant to outlive it.
    """

    def __init__(self, pid: int, session: int) -> None:
        self._pid, self._session = pid, session
        self._known: dict[int, int] = {}

    def look(self) -> None:
        """Take note of those that are there now, and theirs."""
        known: dict[int, int] = {}
        todo = [self._pid]
        while todo:
            for child in children_of(todo.pop()):
                status = status_of(child)
                if status is not None and status.session == self._session and child not in known:
                    known[child] = status.started
                    todo.append(child)
        # One that told of itself may have been forked since.
        self._known = {pid: at for pid, at in self._known.items() if is_same(pid, at)} | known

    def add(self, pid: int) -> None:
        """One that has told of itself."""
        if status := status_of(pid):
            self._known[pid] = status.started

    def end(self) -> list[int]:
        """Kill what is left; answers the pids."""
        ended = []
        for pid, started in self._known.items():
            status = status_of(pid)
            if status is None or (status.started, status.session) != (started, self._session):
                continue
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
        return ended
