"""Ends services of the cluster that stand still, so that whoever supervises them starts them again.

A process that was stopped (SIGSTOP, a debugger that left it) holds its port and its name, and answers nobody: its
supervisor sees a living process. Ray starts an actor again that has ended, and the keeper the console.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

SERVICES = ("ray::ProxyActor", "ray::ServeReplica", "ray::ServeController", "ray::ControlActor")
"""How the titles of their processes begin: those that Ray starts again, and that lose nothing by it.

Ranks watch each other.
"""

STOPPED_FOR_S = 3.0
"""A process may be stopped for a moment, by whoever looks at it. What stands still for longer is missed."""


class StoppedServices:
    """What stands still of one cluster, and since when."""

    def __init__(
        self,
        members: Callable[[], Iterable[psutil.Process]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`members`: the cluster's processes; asked only while something of that title is stopped on this machine."""
        self._members, self._say, self._clock = members, say, clock
        self._since: dict[psutil.Process, float] = {}

    def look(self, own: int | None = None) -> None:
        """End every service that has been stopped for too long. `own`: the pid of the keeper's own program."""
        now_s = self._clock()
        stopped = {process: title for process, title in _stopped() if process.pid == own or title.startswith(SERVICES)}
        ours = set(self._members()) if stopped else set()
        self._since = {process: self._since.get(process, now_s) for process in stopped if process in ours}
        for process, since_s in self._since.items():
            if now_s - since_s >= STOPPED_FOR_S:
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    self._say(
                        f"{stopped[process]} (process {process.pid}) was stopped for {now_s - since_s:.0f} s and "
                        "answered nobody; it was ended, and is started again"
                    )


def _stopped() -> Iterator[tuple[psutil.Process, str]]:
    """Every stopped process of this user, with its title. One that a debugger holds is not stopped in this sense."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and process.uids().real == os.getuid():
                yield process, " ".join(process.cmdline())
