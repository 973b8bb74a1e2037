"""Monitor process beside each rank: detects failures that the rank cannot report itself, and terminates the rank.

    rank     -- socket pair -->  its monitor   progress reports, twice a second; and its forks, when they begin
    monitor  -- TCP, signed -->  rank 0's      the state of the rank (`verdict.RankStatus`), four times a second
    rank 0's -- TCP, signed -->  all           heartbeats; the verdict, if there is one
    monitor  -- socket pair -->  its rank      the same, so that the rank writes its exit reason and ends

A thread of the rank cannot do this: it does not run while the rank is stopped, nor while the rank is merely busy in a C
call that holds the GIL. The kernel tells the two apart. A rank that does not end on a verdict, being stopped or busy,
is killed. A monitor has a session of its own, imports the standard library only, and never outlives its rank by more
than seconds. If a monitor dies alone, it is started again; a missing monitor is not a failure (see `verdict`).

Time is counted in ticks, so that no time passes while this process itself is stopped.
"""

import contextlib
import json
import os
import resource
import selectors
import socket
import time
from dataclasses import asdict
from typing import Any

from ray_jobs.monitor.star import Hub, Spoke
from ray_jobs.monitor.verdict import GONE_AFTER_S, RankFailure
from ray_jobs.monitor.ward import MonitoredRank, MonitorSettings

MESSAGE_BYTES = 16384
END_WITHIN_S = 2.0
"""Time that a rank has to end itself before it is killed."""

STOPPED_END_WITHIN_S = 0.2
"""The same for a stopped rank, which cannot; but the others must write their exit reasons before they see it die."""

ALL_HEARD_AFTER_S = 60.0
"""Time within which every other monitor should have reported once."""

SAY_EVERY_S = 2.0
"""Interval of heartbeats from a monitor to its rank."""

LINGER_S = GONE_AFTER_S + 2.0
"""How long a monitor continues after its rank has died: long enough to make and send the verdict."""


class Monitor:
    """Monitor of one rank."""

    def __init__(
        self, settings: MonitorSettings, rank: socket.socket, dump: int, listener: socket.socket | None
    ) -> None:
        self._settings, self._rank = settings, rank
        self._selector = selectors.DefaultSelector()
        self._ward = MonitoredRank(settings, dump)
        self._star: Hub | Spoke
        if listener is not None:
            self._star = Hub(settings, self._ward, self._selector, listener)
        else:
            self._star = Spoke(settings, self._ward, self._selector)
        self._selector.register(rank, selectors.EVENT_READ, self._hear_rank)
        with contextlib.suppress(OSError):
            self._selector.register(os.pidfd_open(settings.pid), selectors.EVENT_READ, self._look_again)
        self._verdict: RankFailure | None = None
        self._acting_s = 0.0
        self._has_ended_what_is_left = self._is_left = self._is_abandoned = False
        self._abandoned_s = self._said_s = self._age_s = 0.0

    def run(self) -> None:
        """Watch the rank until it has ended and the verdict, if any, has been sent."""
        last_s = time.monotonic()
        while not self._is_left:
            due_s = last_s + self._settings.tick_s
            for key, _ in self._selector.select(max(0.0, due_s - time.monotonic())):
                key.data()
            now_s = time.monotonic()
            if now_s >= due_s or (self._star.is_urgent and self._verdict is None):
                # A late tick means that this process was stopped, too: it says nothing about the others.
                self._tick(min(now_s - last_s, 2 * self._settings.tick_s))
                last_s = now_s

    def _tick(self, tick_s: float) -> None:
        self._ward.tick(tick_s)
        account = self._ward.account
        if account.gone_s:
            self._end_what_is_left()
        self._star.is_urgent = False
        verdict = self._star.tick(tick_s)
        if self._verdict is None and verdict is not None:
            self._begin_to_act(verdict)
        elif self._verdict is not None:
            self._acting_s += tick_s
            within_s = STOPPED_END_WITHIN_S if self._ward.is_stopped else END_WITHIN_S
            if not account.over and not account.gone_s and self._acting_s >= within_s:
                self._ward.end(self._verdict)
        before_s, self._age_s = self._age_s, self._age_s + tick_s
        if before_s < ALL_HEARD_AFTER_S <= self._age_s and (missing := self._star.never_heard()):
            self._say({"never_heard": missing})
        self._said_s += tick_s
        if self._said_s >= SAY_EVERY_S:
            self._said_s = 0.0
            self._say({"tick": 1})
        self._abandoned_s += tick_s if self._is_abandoned else 0.0
        self._is_left = self._is_left or (self._abandoned_s >= END_WITHIN_S and not account.gone_s)
        self._is_left = self._is_left or account.gone_s > (self._settings.tick_s * 2 if account.over else LINGER_S)

    def _begin_to_act(self, verdict: RankFailure) -> None:
        self._verdict = verdict
        if isinstance(self._star, Hub):
            self._star.tell({"verdict": asdict(verdict)})
        if not self._ward.account.over:
            self._say({"verdict": asdict(verdict)})

    def _end_what_is_left(self) -> None:
        """Kill the rank's children, once. Not after the end of a training: a script may leave processes on purpose."""
        if self._has_ended_what_is_left:
            return
        self._has_ended_what_is_left = True
        if not self._ward.account.over:
            self._ward.offspring.end()

    def _look_again(self) -> None:
        """Handle the end of the rank's process as soon as the kernel reports it."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                self._selector.unregister(key.fileobj)
        self._hear_rank()
        self._end_what_is_left()

    def _hear_rank(self) -> None:
        try:
            while message := self._rank.recv(MESSAGE_BYTES):
                report = json.loads(message)
                if "leave" in report:
                    self._is_left = True
                    return
                self._ward.hear(report)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            pass
        # Every copy of its end is closed: the rank has ended, which the next tick sees, or has another monitor.
        self._is_abandoned = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._rank)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._rank.send(json.dumps(message).encode())


def main(rank_file: int, dump: int, listener_file: int) -> None:
    """Run the monitor. The files are inherited descriptors; the rank's first message holds the `MonitorSettings`."""
    rank = socket.socket(fileno=rank_file)
    with contextlib.suppress(ValueError, OSError):
        # Rank 0's monitor has a connection to each of the others.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = rank.recv(MESSAGE_BYTES)
    if not settings:
        return
    rank.setblocking(False)
    listener = socket.socket(fileno=listener_file) if listener_file >= 0 else None
    Monitor(MonitorSettings(**json.loads(settings)), rank, dump, listener).run()
