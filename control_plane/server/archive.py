"""A run that nobody serves any more, read from its files.

Satisfies `handle.RunHandle`, and adds nothing to the run: what was recorded can be looked at, and a command that is
already in the journal answers its retry; everything else is refused with `RunEnded`.
"""

import asyncio
import json
from contextlib import closing
from functools import cached_property
from pathlib import Path
from uuid import UUID

from control_plane.api.handle import (
    MAX_TAIL_ENTRIES,
    MAX_WAIT_S,
    CommandView,
    Measurements,
    Offer,
    Receipt,
    Report,
    Result,
    Snapshot,
    Stretch,
    Trajectories,
)
from control_plane.api.newest import newest_on
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Damaged, NotFound, RunEnded
from control_plane.core.model.records import Death, Ending, Entry, GenerationEnding
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules import decisions
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from control_plane.server.views import snapshot_of, trajectories_of, view_of
from control_plane.storage.journal import writer
from control_plane.storage.layout import IMPORTED, RunFiles
from control_plane.storage.metrics import MetricsStore
from control_plane.storage.regular import read_regular


class ArchivedRun:
    """One run's files as a handle. The journal is read once: it does not grow, unless somebody has the run go on.

    Every method raises `Damaged` if the journal does not verify.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._segments = _segments(files)

    def has_gone_on(self) -> bool:
        """Whether a control server has written since: then the run is not over any more, or ended once more."""
        return _segments(self._files) != self._segments

    @cached_property
    def _entries(self) -> list[Entry]:
        return writer.read(self._files.journal)

    @cached_property
    def _state(self) -> RunState:
        return fold(self._entries)

    @property
    def closed(self) -> bool:
        """Whether the journal ends with the run's end. Reads the journal when it is first asked."""
        return self._state.closed is not None

    @property
    def renamed(self) -> bool:
        """Whether this is another run's journal, imported under an id of its own: to be looked at, never resumed."""
        return self._state.run != self._files.run

    @property
    def only_imported(self) -> bool:
        """Whether the run was imported and nobody has resumed it since: it is looked at in its files, and no control
        server, which would write and remove, is made for it. Reads the journal when it is first asked."""
        try:
            told = json.loads(read_regular(self._files.root / IMPORTED))
            return len(self._entries) <= int(told["records"])
        except FileNotFoundError:
            return False
        except (Damaged, OSError, ValueError, TypeError, KeyError, RecursionError):
            return True  # imported, and it cannot be told whether it was resumed: looking at it must stay harmless

    async def _load(self) -> RunState:
        """The state; a long journal is read beside the event loop."""
        return await asyncio.to_thread(lambda: self._state)

    async def submit(self, command: Command) -> Receipt:
        """The receipt of a command that is in the journal. Raises `RunEnded` for every other, `Conflict` as ever."""
        state = await self._load()
        if decisions.to_be_adopted(state, command) is not None or decisions.accept(state, command):
            raise self._over()
        life = state.commands[command.uuid]
        return Receipt(uuid=command.uuid, run=self._files.run, seq=life.accepted_seq, status=life.status)

    async def command(self, uuid: UUID) -> CommandView:
        """One command's life. Raises `NotFound`."""
        state = await self._load()
        if uuid not in state.commands:
            raise NotFound(f"run {state.run} has no command {uuid}")
        return view_of(state.commands[uuid])

    async def snapshot(self) -> Snapshot:
        """The run as its journal left it."""
        state = await self._load()
        latest = await asyncio.to_thread(self._latest, state.head)
        told = snapshot_of(state, latest, progress=None, progress_age_s=None)
        snapshot = told.model_copy(update={"run": self._files.run})
        if snapshot.closed:
            return snapshot
        return snapshot.model_copy(update={"phase": None, "ranks": (), "reason": self._over().reason})

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """Entries after `after_seq`. Past the end nothing will come, and it takes `wait_s` to say so."""
        await self._load()
        start = max(after_seq, 0)
        found = tuple(self._entries[start : start + min(limit, MAX_TAIL_ENTRIES)])
        if not found:
            await asyncio.sleep(min(max(wait_s, 0.0), MAX_WAIT_S))
        return found

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """Points after the cursor; none if the run never measured anything."""
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

    async def results(self, stretches: tuple[Stretch, ...], names: tuple[str, ...]) -> tuple[Result, ...]:
        """What these metrics came to; nothing if the run never measured anything."""
        return await asyncio.to_thread(self._results, stretches, names)

    def _results(self, stretches: tuple[Stretch, ...], names: tuple[str, ...]) -> tuple[Result, ...]:
        if not self._files.metrics.is_file():
            return ()
        with closing(MetricsStore(self._files.metrics)) as store:
            return store.results(stretches, names)

    async def trajectories(self) -> Trajectories:
        """Every branch as the journal left it."""
        return trajectories_of(await self._load(), progress=None)

    def _over(self) -> RunEnded:
        return RunEnded(
            f"run {self._files.run} is served from its files, because its control server is gone; it takes commands "
            "again when it is resumed"
        )

    async def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """Raises `RunEnded`."""
        raise self._over()

    async def resume(self, author: str, back: bool = False) -> None:
        """Raises `RunEnded`."""
        raise self._over()

    async def lose_generation(self, generation: int, deaths: tuple[Death, ...], loss: UUID | None = None) -> None:
        """Raises `RunEnded`."""
        raise self._over()

    async def start_generation(self, start: GenerationStart) -> int:
        """Raises `RunEnded`."""
        raise self._over()

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """Raises `RunEnded`."""
        raise self._over()

    async def report(self, report: Report) -> None:
        """Raises `RunEnded`."""
        raise self._over()

    async def end_generation(self, generation: int, ending: GenerationEnding, step: int, reason: str | None) -> None:
        """Raises `RunEnded`."""
        raise self._over()

    async def close(self, ending: Ending, reason: str | None) -> None:
        """Raises `RunEnded`."""
        raise self._over()


def _segments(files: RunFiles) -> tuple[tuple[str, int], ...]:
    """The journal's segments and their bytes: each life of a control server begins one, and only that one grows.

    A server that has begun its segment may have the run go on a moment later, in the same one.
    """
    if not files.journal.is_dir():
        return ()
    return tuple(sorted((path.name, _size_bytes(path)) for path in files.journal.iterdir()))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a server that could not write its first line takes its segment away
        return 0
