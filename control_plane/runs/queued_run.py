"""Run that waits in the start queue: what it shows to operators, and the one command that it takes, `stop`."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID

from control_plane.api.messages import (
    CommandView,
    Measurements,
    MetricSummary,
    Receipt,
    Snapshot,
    StepRange,
    Trajectories,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intents import Stop
from control_plane.core.model.records import MAIN, Entry
from control_plane.core.rules.run_deletion import QUEUED
from control_plane.runs.queue_files import QueueEntry
from control_plane.server.archive import ArchivedRun

StopQueued = Callable[[QueueEntry, Command], Awaitable[Receipt]]


class QueuedRun:
    """Operator's handle of a queued run. Implements `OperatorPort`; `before` is its past, if it is being resumed."""

    def __init__(self, entry: QueueEntry, before: ArchivedRun | None, stop: StopQueued) -> None:
        self._entry, self._before, self._stop = entry, before, stop

    @property
    def _why(self) -> str:
        return f"waits: {self._entry.reason or 'it was submitted a moment ago'}"

    async def submit(self, command: Command) -> Receipt:
        """Stop the run, which takes it out of the queue. Raises `Conflict` for any other command."""
        if isinstance(command.intent, Stop):
            return await self._stop(self._entry, command)
        raise Conflict(
            f"run {self._entry.run} is in the queue ({self._why}): it takes commands when it has begun; until then it "
            "can be stopped or deleted"
        )

    async def command(self, uuid: UUID) -> CommandView:
        """See `OperatorPort.command`."""
        if self._before is None:
            raise NotFound(f"run {self._entry.run} has no command {uuid}")
        return await self._before.command(uuid)

    async def snapshot(self) -> Snapshot:
        """Return the run as it is, with the status `queued` and the reason why it waits."""
        if self._before is not None:
            update = {"status": QUEUED, "reason": self._why, "phase": None}
            return (await self._before.snapshot()).model_copy(update=update)
        run = self._entry.run
        return Snapshot(
            run=run,
            name=run,
            seq=0,
            term=0,
            generation=0,
            created_at=utc(self._entry.since_s),
            owner=self._entry.owner,
            status=QUEUED,
            reason=self._why,
            step=0,
            total_steps=0,
        )

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """See `OperatorPort.tail`; nothing is recorded while the run waits."""
        if self._before is None:
            return ()
        return await self._before.tail(after_seq, limit, wait_s)

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """See `OperatorPort.measurements`."""
        if self._before is None:
            return Measurements(points=(), cursor=after)
        return await self._before.measurements(after, limit, names)

    async def results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        """See `OperatorPort.results`."""
        return () if self._before is None else await self._before.results(stretches, names)

    async def trajectories(self) -> Trajectories:
        """See `OperatorPort.trajectories`; a run that has never begun has none."""
        if self._before is None:
            return Trajectories(run=self._entry.run, status=QUEUED, head=MAIN, total_steps=0, branches=())
        return (await self._before.trajectories()).model_copy(update={"status": QUEUED})


def utc(time_s: float) -> str:
    """Return a time as journals write it."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
