"""Announcement of shards: one command for what has come in since the last one, so that all ranks see it from one step.

A shard is durable before its sender is told, and its announcement's uuid before the command is posted: whatever is
killed between, the next gateway goes on, and no shard is announced twice.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from control_plane.api.messages import CommandView
from control_plane.api.ports import OperatorPort
from control_plane.core.model.commands import Command
from control_plane.core.model.data import FIRST_STEP
from control_plane.core.model.errors import NotFound, Overloaded, Refused, RunEnded, SteerwayError
from control_plane.core.model.intents.data import AddShards
from control_plane.storage.data.index import Announcement, SourceIndex
from control_plane.storage.layout import RUN_ID, RunFiles

LOOK_EVERY_S = 0.25
"""Pause between two looks at sources with new shards. What comes in meanwhile is announced together."""

WITHOUT_PROGRESS_S = 10.0
"""Pause for a source of a run that takes no commands now: it waits in the queue, or is over and may be resumed."""

log = logging.getLogger(__name__)


class Runs(Protocol):
    """Access to the runs, see `gateway.app.RunDirectory`."""

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on the run."""
        ...


class ShardAnnouncer:
    """Announcer of one installation's shards."""

    def __init__(
        self, runs_dir: Path, runs: Runs, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Announce the shards of the runs in `runs_dir`."""
        self._runs_dir, self._runs, self._sleep = runs_dir, runs, sleep
        # Sources that may have something to announce, and the monotonic time before which there is no use in a look.
        self._open: dict[tuple[str, str], float] = {}

    def wake(self, run: str, source: str) -> None:
        """Look at a source soon: a shard has come in."""
        self._open[run, source] = 0.0

    async def run_forever(self) -> None:
        """Announce what waits, of the gateway before this one, too."""
        for run, source in await asyncio.to_thread(self._with_index):
            self._open.setdefault((run, source), 0.0)
        while True:
            await self.look()
            await self._sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look at every source once that may have something to announce."""
        now_s = time.monotonic()
        for (run, source), not_before_s in list(self._open.items()):
            if not_before_s > now_s:
                continue
            try:
                goes_on = await self._announce(run, source)
            except (SteerwayError, OSError) as error:
                log.warning("shards of source %s of run %s: %s", source, run, getattr(error, "reason", error))
                goes_on = False
            if goes_on is None:
                self._open.pop((run, source), None)
            elif not goes_on:
                self._open[run, source] = now_s + WITHOUT_PROGRESS_S

    def _with_index(self) -> list[tuple[str, str]]:
        """Return the sources that have taken something in."""
        found = self._runs_dir.glob("*/data/*/index.sqlite")
        return [(path.parts[-4], path.parts[-2]) for path in found if RUN_ID.fullmatch(path.parts[-4])]

    async def _announce(self, run: str, source: str) -> bool | None:
        """Make the next announcement of a source, or look at its outcome. Return whether another look is of use soon.

        None: nothing waits.
        """
        folder = RunFiles(self._runs_dir / run).data / source
        if not (folder / "index.sqlite").is_file():
            return None  # the run was deleted
        index = await asyncio.to_thread(SourceIndex, folder, source)
        announcement = await asyncio.to_thread(index.next_announcement)
        if announcement is None:
            return None
        try:
            handle = await self._runs.handle(run)
        except NotFound:
            return None  # the run is gone
        try:
            view = await self._view(handle, announcement, source)
        except (RunEnded, Overloaded):
            return False
        except Refused as refusal:
            await asyncio.to_thread(index.settle, announcement.uuid, "refused", None, refusal.reason)
            return True
        if view is None or view.settled is None:
            return True
        settled, after = view.settled, view.settled.after or {}
        if settled.status == "applied":
            step = after.get(FIRST_STEP, settled.step)
            await asyncio.to_thread(index.settle, announcement.uuid, "live", step, None)
        else:
            await asyncio.to_thread(
                index.settle, announcement.uuid, "refused", settled.step, settled.reason or settled.status
            )
        return True

    async def _view(self, handle: OperatorPort, announcement: Announcement, source: str) -> CommandView | None:
        """Return the announcement's command, which is posted if the run does not know it."""
        try:
            return await handle.command(announcement.uuid)
        except NotFound:
            intent = AddShards(source=source, shards=announcement.shards)
            sender = announcement.sender
            await handle.submit(Command(uuid=announcement.uuid, author=sender.author, role=sender.role, intent=intent))
            return None
