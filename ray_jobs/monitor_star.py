"""How the monitors hear of each other: rank 0's in the middle, which judges, and the others around it, which obey.

Standard library only, see `rank_monitor`.
"""

import contextlib
import selectors
import socket
from dataclasses import asdict, replace
from typing import Any

from ray_jobs.monitor_ward import Orders, Ward
from ray_jobs.monitor_wire import Refused, Wire
from ray_jobs.rank_processes import machine, status_of
from ray_jobs.verdict import Account, Verdict, judge

CONNECT_EVERY_S = 1.0
RANKS_A_TICK = 128
"""So many may be heard and told in each tick; of more, every second one, and so on."""

MOST_TICKS = 6
"""Never more seldom than so: silence means something after a few seconds."""

MOST_STRANGERS = 64
"""So many connections may be open whose other end has not shown that it knows the token."""


class Star:
    """What all have in common: rank 0's monitor in the middle, the others around it."""

    def __init__(self, orders: Orders, ward: Ward, selector: selectors.BaseSelector) -> None:
        self._orders, self._ward, self._selector = orders, ward, selector
        self._machine = machine()
        self._places: dict[int, tuple[str, int, int]] = {}
        # Something was heard that is not to wait for the next tick.
        self.is_urgent = False
        self._ticks = 0

    def _is_time_to_tell(self) -> bool:
        """Each tick; where there are many ranks, less often: rank 0's monitor hears and tells them all."""
        self._ticks += 1
        return self._ticks % min(1 + self._orders.world_size // RANKS_A_TICK, MOST_TICKS) == 0

    def never_heard(self) -> list[int]:
        """The ranks whose monitors have never been heard, by the one that should."""
        return []

    def _about_mine(self) -> dict[str, Any]:
        place = (self._machine, self._orders.pid, self._ward.started)
        return {"account": asdict(self._ward.account), "place": place}

    def _note_place(self, rank: int, told: dict[str, Any]) -> None:
        name, pid, started = told["place"]
        self._places[rank] = (str(name), int(pid), int(started))

    def _checked(self, account: Account) -> Account:
        """Where a monitor is silent, and its rank is on this machine: the rank need not be."""
        name, pid, started = self._places.get(account.rank, ("", 0, 0))
        if account.unheard_s < self._orders.hang_after_s or not name or name != self._machine:
            return account
        try:
            status = status_of(pid)
        except OSError:
            return account
        lives = status is not None and status.started == started and not status.is_stopped
        return replace(account, unheard_s=0.0) if lives else account

    def _drop(self, wire: Wire) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire.connection)
        wire.close()


class Hub(Star):
    """Rank 0's part: it hears all, judges, and tells the verdict."""

    def __init__(self, orders: Orders, ward: Ward, selector: selectors.BaseSelector, listener: socket.socket) -> None:
        super().__init__(orders, ward, selector)
        self._listener = listener
        self._accounts = {rank: Account(rank, heard=False) for rank in range(1, orders.world_size)}
        self._wires: list[Wire] = []
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        """Somebody wants to talk."""
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if sum(not wire.is_trusted for wire in self._wires) >= self._orders.world_size + MOST_STRANGERS:
                connection.close()
                return
            wire = Wire(connection, self._orders.token, is_hub=True)
            self._wires.append(wire)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(wire))
            self._hear(wire)

    def _hear(self, wire: Wire) -> None:
        try:
            wire.flush()
            for told in wire.receive():
                account = Account(**told["account"])
                if account.rank in self._accounts:
                    self._accounts[account.rank] = replace(account, heard=True, unheard_s=0.0)
                    self._note_place(account.rank, told)
                    self.is_urgent |= account.stopped_s >= self._orders.hang_after_s
        except (Refused, TypeError, KeyError, ValueError):
            self._wires.remove(wire)
            self._drop(wire)

    def tick(self, tick_s: float) -> Verdict | None:
        """Count, tell that this one is there, and judge."""
        for rank, account in self._accounts.items():
            self._accounts[rank] = self._checked(replace(account, unheard_s=account.unheard_s + tick_s))
        if self._is_time_to_tell():
            self.tell(self._about_mine())
        return judge([self._ward.account, *self._accounts.values()], self._orders.bounds)

    def never_heard(self) -> list[int]:
        """These are not watched by anybody but their own monitor, if that is there."""
        return [account.rank for account in self._accounts.values() if not account.heard]

    def tell(self, message: dict[str, Any]) -> None:
        """To all who are there."""
        for wire in list(self._wires):
            try:
                wire.say(message)
            except Refused:
                self._wires.remove(wire)
                self._drop(wire)


class Spoke(Star):
    """Any other rank's part: it tells, and obeys. It judges by itself only when the middle is silent."""

    def __init__(self, orders: Orders, ward: Ward, selector: selectors.BaseSelector) -> None:
        super().__init__(orders, ward, selector)
        self._wire: Wire | None = None
        self._since_s = CONNECT_EVERY_S
        self._hub = Account(0, heard=False)
        self._told: Verdict | None = None

    def tick(self, tick_s: float) -> Verdict | None:
        """Count, tell, and answer what was decided."""
        self._since_s += tick_s
        self._hub = self._checked(replace(self._hub, unheard_s=self._hub.unheard_s + tick_s))
        if self._wire is None and self._since_s >= CONNECT_EVERY_S:
            self._since_s = 0.0
            self._connect()
        is_grave = self._ward.account.stopped_s or self._ward.account.gone_s or self._ward.account.over
        if self._wire is not None and (self._is_time_to_tell() or is_grave or not self._wire.is_open):
            self._tell(self._wire)
        is_alone = self._hub.unheard_s >= self._orders.hang_after_s or self._hub.over
        if self._told is None and is_alone:
            return judge([self._ward.account, self._hub], self._orders.bounds)
        return self._told

    def _tell(self, wire: Wire) -> None:
        """To rank 0's; first of all the nonce, and nothing else until its own is known."""
        try:
            if wire.is_open:
                wire.say(self._about_mine())
            else:
                wire.flush()
        except Refused:
            self._lose()

    def _connect(self) -> None:
        try:
            found = socket.getaddrinfo(self._orders.address, self._orders.port, type=socket.SOCK_STREAM)
            connection = socket.socket(found[0][0], socket.SOCK_STREAM)
        except OSError:
            return
        connection.setblocking(False)
        connection.connect_ex(found[0][4])
        self._wire = Wire(connection, self._orders.token, is_hub=False)
        self._selector.register(connection, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        if self._wire is None:
            return
        try:
            self._wire.flush()
            for told in self._wire.receive():
                if "verdict" in told:
                    self._told, self.is_urgent = verdict_of(told["verdict"]), True
                else:
                    self._hub = replace(Account(**told["account"]), rank=0, heard=True, unheard_s=0.0)
                    self._note_place(0, told)
        except (Refused, TypeError, KeyError, ValueError):
            self._lose()

    def _lose(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._drop(wire)


def verdict_of(told: dict[str, Any]) -> Verdict:
    """As it was sent."""
    return Verdict(told["kind"], tuple(told["ranks"]), str(told["phase"]), str(told["reason"]))
