"""Faults to plant into a life of the control server. The campaign of kills has to find each of them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from control_plane.api.messages import Receipt
from control_plane.core.model.commands import Command
from control_plane.core.model.records import CheckpointDiscarded, CommandAccepted, Entry, Record
from control_plane.core.rules import decisions
from control_plane.core.rules.checkpoint_rules import retired_checkpoints
from control_plane.server.control_server import ControlServer
from control_plane.storage.failpoints import halves, reach
from control_plane.storage.journal import segments
from control_plane.storage.journal.writer import Disk, Journal

NOW = "2026-01-01T00:00:00.000Z"


def acknowledges_before_the_sync() -> None:
    """The bytes are on their way when the answer is given; they are synced before the next ones."""
    settle = Disk._settle

    def persist(self: Disk, descriptor: int, data: bytes, at: str) -> None:
        settle(self, descriptor, at)
        reach(at, "before_write")
        for part in halves(at, data):
            self.write(descriptor, part)

    Disk.persist = persist


def never_syncs() -> None:
    """Not the files, nor their folder."""

    def settle(self: Disk, descriptor: int, at: str) -> None:
        reach(at, "before_sync")
        reach(at, "after_sync")

    Disk._settle = settle


def never_syncs_the_names() -> None:
    """The files are synced; that they exist is not."""

    def sync(self: Disk, path: Path, at: str) -> None:
        reach(at, "before_sync")
        reach(at, "after_sync")

    Disk.sync = sync


def looks_for_no_successor() -> None:
    """No fence."""
    Journal._check_fence = lambda self: None


def goes_on_behind_a_failed_write() -> None:
    """In the same segment, as if nothing lay there."""
    append = Journal.append

    def confident(self: Journal, records: Sequence[Record], now: str) -> list[Entry]:
        try:
            return append(self, records, now)
        finally:
            self._unsettled = False

    Journal.append = confident


def forgets_the_last_record() -> None:
    """What a life takes over lacks one record."""
    recover = Journal._recover

    def careless(self: Journal, number: int) -> None:
        recover(self, number)
        whole, pin = segments.load(self._directory, below=number)
        if len(whole) > 3:
            self._entries = whole[:-1]
            self._end = segments.Pin(pin.segment, pin.size_bytes, pin.seq - 1, pin.digest)

    Journal._recover = careless


def evolves_before_it_appends() -> None:
    """First visible, then durable."""

    def commit(self: ControlServer, records: list[Record]) -> None:
        for record in records:
            self._fold(Entry(seq=self._state.seq + 1, time=NOW, record=record))
        if records:
            self._changed.set()
            self._changed = asyncio.Event()
            self._journal.append(records, NOW)

    ControlServer._commit = commit


def answers_before_it_appends() -> None:
    """The receipt leaves at once; the rest is done when there is time."""
    submit = ControlServer.submit

    async def hasty(self: ControlServer, command: Command) -> Receipt:
        if command.uuid in self._state.commands:
            return await submit(self, command)
        decisions.accept(self._state, command)
        task = asyncio.ensure_future(submit(self, command))
        task.add_done_callback(lambda done: done.exception())
        return Receipt(uuid=command.uuid, run="killed", seq=self._state.seq + 1, status="accepted")

    ControlServer.submit = hasty


def answers_a_retry_from_memory() -> None:
    """Whatever became of the first try."""
    submit, promised = ControlServer.submit, dict[UUID, Receipt]()

    async def forward(self: ControlServer, command: Command) -> Receipt:
        if command.uuid in promised:
            return promised[command.uuid]
        if command.uuid not in self._state.commands:
            decisions.accept(self._state, command)
            seq = self._state.seq + 1
            promised[command.uuid] = Receipt(uuid=command.uuid, run="killed", seq=seq, status="accepted")
        return await submit(self, command)

    ControlServer.submit = forward


def takes_every_request_for_a_new_one() -> None:
    """Whatever its uuid."""
    accept = decisions.accept

    def forgetful(state: object, command: Command, *rest: object) -> list[Record]:
        return accept(state, command, *rest) or [CommandAccepted(command=command)]

    decisions.accept = forgetful


def removes_before_it_decides() -> None:
    """The files are gone before the journal says so."""

    def retire(self: ControlServer) -> None:
        retired = retired_checkpoints(self._state)
        for each, _ in retired:
            self._discard(each)
        self._commit([CheckpointDiscarded(checkpoint=each.checkpoint, reason=reason) for each, reason in retired])

    ControlServer._retire_checkpoints = retire
