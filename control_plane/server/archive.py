"""Read-only access to a run without a control server, from its files.

An `OperatorPort`: the run can be inspected, and a retry of a command in the journal gets its receipt;
everything else raises `RunEnded`.
"""

import asyncio
import json
from contextlib import closing
from functools import cached_property
from pathlib import Path
from uuid import UUID

from control_plane.api.messages import (
    MAX_TAIL_ENTRIES,
    MAX_WAIT_S,
    CommandView,
    Measurements,
    MetricSummary,
    Receipt,
    Snapshot,
    StepRange,
    Trajectories,
)
from control_plane.api.newest import newest_on
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Damaged, NotFound, RunEnded
from control_plane.core.model.records import Entry
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules import decisions
from control_plane.server.views import snapshot_of, trajectories_of, view_of
from control_plane.storage.journal import writer
from control_plane.storage.layout import IMPORTED, RunFiles
from control_plane.storage.metrics import MetricsStore
from control_plane.storage.regular import read_regular


class ArchivedRun:
    """Read-only handle of an archived run. The journal is read once: it does not grow unless the run is resumed.

    Every method raises `Damaged` if the journal does not verify.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._segments = _segments(files)

    def has_gone_on(self) -> bool:
        """Return whether a control server has written to the journal since it was opened here."""
        return _segments(self._files) != self._segments

    @cached_property
    def _entries(self) -> list[Entry]:
        return writer.read(self._files.journal)

    @cached_property
    def _state(self) -> RunState:
        return fold(self._entries)

    @property
    def closed(self) -> bool:
        """True if the run is closed. Reads the journal on first use."""
        return self._state.closed is not None

    @property
    def renamed(self) -> bool:
        """True if another run's journal was imported under this id: it can be inspected, never resumed."""
        return self._state.run != self._files.run

    @property
    def only_imported(self) -> bool:
        """True if the run was imported and not resumed since: it is read from its files, without a control server,
        which would write and remove. Reads the journal on first use."""
        try:
            marker = json.loads(read_regular(self._files.root / IMPORTED))
            return len(self._entries) <= int(marker["records"])
        except FileNotFoundError:
            return False
        except (Damaged, OSError, ValueError, TypeError, KeyError, RecursionError):
            return True  # imported, and unknown whether it was resumed: inspecting it must stay harmless

    async def _load(self) -> RunState:
        """Return the state; the journal is read in a thread."""
        return await asyncio.to_thread(lambda: self._state)

    async def submit(self, command: Command) -> Receipt:
        """Return the receipt of a command in the journal. Raises `RunEnded` for any other, `Conflict` as usual."""
        state = await self._load()
        if decisions.to_be_adopted(state, command) is not None or decisions.accept(state, command):
            raise self._over()
        life = state.commands[command.uuid]
        return Receipt(uuid=command.uuid, run=self._files.run, seq=life.accepted_seq, status=life.status)

    async def command(self, uuid: UUID) -> CommandView:
        """See `OperatorPort.command`."""
        state = await self._load()
        if uuid not in state.commands:
            raise NotFound(f"run {state.run} has no command {uuid}")
        return view_of(state.commands[uuid])

    async def snapshot(self) -> Snapshot:
        """Return the run as its journal has it."""
        state = await self._load()
        latest = await asyncio.to_thread(self._latest, state.tree.head)
        recorded = snapshot_of(state, latest, progress=None, progress_age_s=None)
        snapshot = recorded.model_copy(update={"run": self._files.run})
        if snapshot.closed:
            return snapshot
        return snapshot.model_copy(update={"phase": None, "ranks": (), "reason": self._over().reason})

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """Return entries after `after_seq`. Past the end it still waits `wait_s`, as a long poll does."""
        await self._load()
        start = max(after_seq, 0)
        entries = tuple(self._entries[start : start + min(limit, MAX_TAIL_ENTRIES)])
        if not entries:
            await asyncio.sleep(min(max(wait_s, 0.0), MAX_WAIT_S))
        return entries

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """See `OperatorPort.measurements`; empty if the run has no metrics."""
        return await asyncio.to_thread(self._measurements, after, limit, names)

    def _measurements(self, after: int, limit: int, names: tuple[str, ...]) -> Measurements:
        if not self._files.metrics.is_file():
            return Measurements(points=(), cursor=after)
        with closing(MetricsStore(self._files.metrics)) as store:
            return store.read(after, limit, names)

    def _latest(self, branch: str) -> dict[str, float]:
        if not self._files.metrics.is_file():
            return {}
        with closing(MetricsStore(self._files.metrics)) as store:
            return newest_on(store, branch)

    async def results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        """See `OperatorPort.results`; empty if the run has no metrics."""
        return await asyncio.to_thread(self._results, stretches, names)

    def _results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        if not self._files.metrics.is_file():
            return ()
        with closing(MetricsStore(self._files.metrics)) as store:
            return store.results(stretches, names)

    async def trajectories(self) -> Trajectories:
        """See `OperatorPort.trajectories`."""
        return trajectories_of(await self._load(), progress=None)

    def _over(self) -> RunEnded:
        return RunEnded(
            f"run {self._files.run} has no control server and is read from its files; it takes commands again when "
            "it is resumed"
        )


def _segments(files: RunFiles) -> tuple[tuple[str, int], ...]:
    """Return the journal's segments and their sizes in bytes: each control server begins one, and only that one grows.

    Sizes are needed: a server may resume the run some time after it began its segment.
    """
    if not files.journal.is_dir():
        return ()
    return tuple(sorted((path.name, _size_bytes(path)) for path in files.journal.iterdir()))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a server that could not write its first line removes its segment
        return 0
