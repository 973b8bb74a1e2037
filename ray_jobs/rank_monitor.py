"""The process beside each rank: it sees what the rank cannot say itself, tells rank 0's, and ends what is to end.

    rank     -- socket pair -->  its monitor   what goes on, twice a second; and its forks, when they begin
    monitor  -- TCP, signed -->  rank 0's      what is known of the rank (`verdict.Account`), four times a second
    rank 0's -- TCP, signed -->  all           that it is there; the verdict, if there is one
    monitor  -- socket pair -->  its rank      the same, so that the rank says its last words and ends

A thread of the rank cannot do this: it stands still when the rank is stopped, and also when the rank is merely busy in
a C call that holds Python's lock. The kernel tells the two apart. Whoever does not end when told to, being stopped or
busy, is killed. A monitor has a session of its own, imports the standard library only, and never outlives its rank by
more than seconds. One that dies alone is started again; one that is missing is no death (see `verdict`).

Time is counted in ticks: when this process itself stands still, so does the count.
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

from ray_jobs.monitor_star import Hub, Spoke
from ray_jobs.monitor_ward import Orders, Ward
from ray_jobs.verdict import GONE_AFTER_S, Verdict

MESSAGE_BYTES = 16384
END_WITHIN_S = 2.0
"""How long a rank has to end itself."""

STOPPED_END_WITHIN_S = 0.2
"""One that is stopped cannot; but the others are to say why they end before they see it go."""

ALL_HEARD_AFTER_S = 60.0
"""By then every other monitor should have been heard once."""

SAY_EVERY_S = 2.0
"""How often the rank is told that its monitor is there."""

LINGER_S = GONE_AFTER_S + 2.0
"""How long a monitor goes on after its rank has died: long enough for the verdict to be made and told."""


class Monitor:
    """One rank's."""

    def __init__(self, orders: Orders, rank: socket.socket, dump: int, listener: socket.socket | None) -> None:
        self._orders, self._rank = orders, rank
        self._selector = selectors.DefaultSelector()
        self._ward = Ward(orders, dump)
        self._star: Hub | Spoke
        if listener is not None:
            self._star = Hub(orders, self._ward, self._selector, listener)
        else:
            self._star = Spoke(orders, self._ward, self._selector)
        self._selector.register(rank, selectors.EVENT_READ, self._hear_rank)
        with contextlib.suppress(OSError):
            self._selector.register(os.pidfd_open(orders.pid), selectors.EVENT_READ, self._look_again)
        self._verdict: Verdict | None = None
        self._acting_s = 0.0
        self._has_ended_what_is_left = self._is_left = self._is_abandoned = False
        self._abandoned_s = self._said_s = self._age_s = 0.0

    def run(self) -> None:
        """Until the rank is gone and nothing is left to tell."""
        last_s = time.monotonic()
        while not self._is_left:
            due_s = last_s + self._orders.tick_s
            for key, _ in self._selector.select(max(0.0, due_s - time.monotonic())):
                key.data()
            now_s = time.monotonic()
            if now_s >= due_s or (self._star.is_urgent and self._verdict is None):
                # A tick that came late says that this process stood still, too: it proves nothing about the others.
                self._tick(min(now_s - last_s, 2 * self._orders.tick_s))
                last_s = now_s

    def _tick(self, tick_s: float) -> None:
        self._ward.tick(tick_s)
        account = self._ward.account
        if account.gone_s:
            self._end_what_is_left()
        self._star.is_urgent = False
        found = self._star.tick(tick_s)
        if self._verdict is None and found is not None:
            self._begin_to_act(found)
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
        self._is_left = self._is_left or account.gone_s > (self._orders.tick_s * 2 if account.over else LINGER_S)

    def _begin_to_act(self, verdict: Verdict) -> None:
        self._verdict = verdict
        if isinstance(self._star, Hub):
            self._star.tell({"verdict": asdict(verdict)})
        if not self._ward.account.over:
            self._say({"verdict": asdict(verdict)})

    def _end_what_is_left(self) -> None:
        """Once. Not after the end of a training: what a script then leaves, it may have meant to leave."""
        if self._has_ended_what_is_left:
            return
        self._has_ended_what_is_left = True
        if not self._ward.account.over:
            self._ward.offspring.end()

    def _look_again(self) -> None:
        """The kernel says that the rank has ended: now, and not at the next tick."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                self._selector.unregister(key.fileobj)
        self._hear_rank()
        self._end_what_is_left()

    def _hear_rank(self) -> None:
        try:
            while message := self._rank.recv(MESSAGE_BYTES):
                told = json.loads(message)
                if "leave" in told:
                    self._is_left = True
                    return
                self._ward.hear(told)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            pass
        # Every copy of its end is closed: it is gone, which the tick will see, or has another monitor.
        self._is_abandoned = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._rank)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._rank.send(json.dumps(message).encode())


def main(rank_file: int, dump: int, listener_file: int) -> None:
    """Begin. The files are inherited; the first message of the rank says what for."""
    rank = socket.socket(fileno=rank_file)
    with contextlib.suppress(ValueError, OSError):
        # Rank 0's has a connection to each of the others.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    told = rank.recv(MESSAGE_BYTES)
    if not told:
        return
    rank.setblocking(False)
    listener = socket.socket(fileno=listener_file) if listener_file >= 0 else None
    Monitor(Orders(**json.loads(told)), rank, dump, listener).run()
