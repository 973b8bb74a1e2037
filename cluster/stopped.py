"""Detection of stopped services of the cluster: kills them, so that their supervisors restart them.

A stopped process (SIGSTOP, a debugger that left it) holds its port and its name, and does not answer, but its
supervisor sees a living process. Once it is dead, Ray restarts an actor, and the keeper restarts the console.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

SERVICES = ("ray::ProxyActor", "ray::ServeReplica", "ray::ServeController", "ray::ControlActor")
"""Prefixes of the process titles of services that Ray restarts without loss. Ranks have their own watchdog."""

STOPPED_FOR_S = 3.0
"""A process may be stopped for a moment, for inspection; after so long it is killed."""


class StoppedServices:
    """Stopped services of one cluster, and the times since when."""

    def __init__(
        self,
        members: Callable[[], Iterable[psutil.Process]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`members`: the cluster's processes; called only while a process of that title is stopped on this machine."""
        self._members, self._say, self._clock = members, say, clock
        self._since: dict[psutil.Process, float] = {}

    def look(self, own: int | None = None) -> None:
        """Kill every service that has been stopped for too long. `own`: the pid of the keeper's own program."""
        now_s = self._clock()
        stopped = {process: title for process, title in _stopped() if process.pid == own or title.startswith(SERVICES)}
        ours = set(self._members()) if stopped else set()
        self._since = {process: self._since.get(process, now_s) for process in stopped if process in ours}
        for process, since_s in self._since.items():
            if now_s - since_s >= STOPPED_FOR_S:
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    self._say(
                        f"{stopped[process]} (process {process.pid}) was stopped for {now_s - since_s:.0f} s; it was "
                        "killed, and is restarted"
                    )


def _stopped() -> Iterator[tuple[psutil.Process, str]]:
    """Yield every stopped process of this user, with its title. One that a debugger holds does not count."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and process.uids().real == os.getuid():
                yield process, " ".join(process.cmdline())
