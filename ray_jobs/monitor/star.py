"""Star network of the ranks' monitors: the hub at rank 0 detects failures, the spokes at the other ranks report to it.

Standard library only, see `monitor`.
"""

import contextlib
import selectors
import socket
from dataclasses import asdict, replace
from typing import Any

from ray_jobs.monitor.processes import machine, status_of
from ray_jobs.monitor.verdict import RankFailure, RankStatus, judge
from ray_jobs.monitor.ward import MonitoredRank, MonitorSettings
from ray_jobs.monitor.wire import PeerConnection, PeerError

CONNECT_EVERY_S = 1.0
RANKS_A_TICK = 128
"""Up to so many ranks, messages are exchanged in each tick; up to twice as many, in every second tick, and so on."""

MOST_TICKS = 6
"""Longest interval between messages: a missing heartbeat counts after a few seconds."""

MOST_STRANGERS = 64
"""Limit of open connections that have not been authenticated with the token."""


class Star:
    """Base class of the hub and the spokes: heartbeats, and the processes of known ranks."""

    def __init__(self, settings: MonitorSettings, ward: MonitoredRank, selector: selectors.BaseSelector) -> None:
        self._settings, self._ward, self._selector = settings, ward, selector
        self._machine = machine()
        self._places: dict[int, tuple[str, int, int]] = {}
        # A message was received that must not wait for the next tick.
        self.is_urgent = False
        self._ticks = 0

    def _is_time_to_tell(self) -> bool:
        """Return whether to send in this tick: less often with many ranks, since the hub exchanges with all of them."""
        self._ticks += 1
        return self._ticks % min(1 + self._settings.world_size // RANKS_A_TICK, MOST_TICKS) == 0

    def never_heard(self) -> list[int]:
        """Return the ranks whose monitors have never reported to the hub; empty for a spoke."""
        return []

    def _about_mine(self) -> dict[str, Any]:
        place = (self._machine, self._settings.pid, self._ward.started)
        return {"account": asdict(self._ward.account), "place": place}

    def _note_place(self, rank: int, message: dict[str, Any]) -> None:
        name, pid, started = message["place"]
        self._places[rank] = (str(name), int(pid), int(started))

    def _checked(self, account: RankStatus) -> RankStatus:
        """Return the account with its silence reset if the rank's process is alive on this machine."""
        name, pid, started = self._places.get(account.rank, ("", 0, 0))
        if account.unheard_s < self._settings.hang_after_s or not name or name != self._machine:
            return account
        try:
            status = status_of(pid)
        except OSError:
            return account
        lives = status is not None and status.started == started and not status.is_stopped
        return replace(account, unheard_s=0.0) if lives else account

    def _drop(self, wire: PeerConnection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire.connection)
        wire.close()


class Hub(Star):
    """Rank 0's end of the star: receives all reports, detects failures, and broadcasts the verdict."""

    def __init__(
        self, settings: MonitorSettings, ward: MonitoredRank, selector: selectors.BaseSelector, listener: socket.socket
    ) -> None:
        super().__init__(settings, ward, selector)
        self._listener = listener
        self._accounts = {rank: RankStatus(rank, heard=False) for rank in range(1, settings.world_size)}
        self._wires: list[PeerConnection] = []
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        """Accept a connection, unless too many are not authenticated."""
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if sum(not wire.is_trusted for wire in self._wires) >= self._settings.world_size + MOST_STRANGERS:
                connection.close()
                return
            wire = PeerConnection(connection, self._settings.token, is_hub=True)
            self._wires.append(wire)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(wire))
            self._hear(wire)

    def _hear(self, wire: PeerConnection) -> None:
        try:
            wire.flush()
            for message in wire.receive():
                account = RankStatus(**message["account"])
                if account.rank in self._accounts:
                    self._accounts[account.rank] = replace(account, heard=True, unheard_s=0.0)
                    self._note_place(account.rank, message)
                    self.is_urgent |= account.stopped_s >= self._settings.hang_after_s
        except (PeerError, TypeError, KeyError, ValueError):
            self._wires.remove(wire)
            self._drop(wire)

    def tick(self, tick_s: float) -> RankFailure | None:
        """Advance the clocks, send a heartbeat, and return a verdict if there is a failure."""
        for rank, account in self._accounts.items():
            self._accounts[rank] = self._checked(replace(account, unheard_s=account.unheard_s + tick_s))
        if self._is_time_to_tell():
            self.tell(self._about_mine())
        return judge([self._ward.account, *self._accounts.values()], self._settings.timeouts)

    def never_heard(self) -> list[int]:
        """Return the ranks whose monitors have never reported: only their own monitors, if any, watch them."""
        return [account.rank for account in self._accounts.values() if not account.heard]

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to all connected monitors."""
        for wire in list(self._wires):
            try:
                wire.say(message)
            except PeerError:
                self._wires.remove(wire)
                self._drop(wire)


class Spoke(Star):
    """Another rank's end of the star: reports to the hub and takes its verdict; decides alone if the hub is silent."""

    def __init__(self, settings: MonitorSettings, ward: MonitoredRank, selector: selectors.BaseSelector) -> None:
        super().__init__(settings, ward, selector)
        self._wire: PeerConnection | None = None
        self._since_s = CONNECT_EVERY_S
        self._hub = RankStatus(0, heard=False)
        self._verdict: RankFailure | None = None

    def tick(self, tick_s: float) -> RankFailure | None:
        """Advance the clocks, report to the hub, and return the verdict, if there is one."""
        self._since_s += tick_s
        self._hub = self._checked(replace(self._hub, unheard_s=self._hub.unheard_s + tick_s))
        if self._wire is None and self._since_s >= CONNECT_EVERY_S:
            self._since_s = 0.0
            self._connect()
        is_grave = self._ward.account.stopped_s or self._ward.account.gone_s or self._ward.account.over
        if self._wire is not None and (self._is_time_to_tell() or is_grave or not self._wire.is_open):
            self._tell(self._wire)
        is_alone = self._hub.unheard_s >= self._settings.hang_after_s or self._hub.over
        if self._verdict is None and is_alone:
            return judge([self._ward.account, self._hub], self._settings.timeouts)
        return self._verdict

    def _tell(self, wire: PeerConnection) -> None:
        """Report to the hub; only the nonce until the hub's nonce is known."""
        try:
            if wire.is_open:
                wire.say(self._about_mine())
            else:
                wire.flush()
        except PeerError:
            self._lose()

    def _connect(self) -> None:
        try:
            addresses = socket.getaddrinfo(self._settings.address, self._settings.port, type=socket.SOCK_STREAM)
            connection = socket.socket(addresses[0][0], socket.SOCK_STREAM)
        except OSError:
            return
        connection.setblocking(False)
        connection.connect_ex(addresses[0][4])
        self._wire = PeerConnection(connection, self._settings.token, is_hub=False)
        self._selector.register(connection, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        if self._wire is None:
            return
        try:
            self._wire.flush()
            for message in self._wire.receive():
                if "verdict" in message:
                    self._verdict, self.is_urgent = verdict_of(message["verdict"]), True
                else:
                    self._hub = replace(RankStatus(**message["account"]), rank=0, heard=True, unheard_s=0.0)
                    self._note_place(0, message)
        except (PeerError, TypeError, KeyError, ValueError):
            self._lose()

    def _lose(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._drop(wire)


def verdict_of(message: dict[str, Any]) -> RankFailure:
    """Parse a verdict that another monitor has sent."""
    return RankFailure(message["kind"], tuple(message["ranks"]), str(message["phase"]), str(message["reason"]))
