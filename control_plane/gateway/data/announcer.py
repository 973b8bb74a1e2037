"""Announcement of shards: one command for what has come in since the last one, so that all ranks see it from one step.

A shard is durable before its sender is told, and its announcement's uuid before the command is posted: whatever is
killed between, the next gateway goes on, and no shard is announced twice. Shards of an agent are proposed: a person
approves them first.
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
from control_plane.core.model.data import FIRST_STEP, MAX_SHARDS
from control_plane.core.model.errors import NotFound, Overloaded, Refused, RunEnded, SteerwayError
from control_plane.core.model.intents.agent import Propose
from control_plane.core.model.intents.data import AddShards
from control_plane.core.model.limits import AGENT
from control_plane.core.model.values import MAX_NOTE_CHARS
from control_plane.core.rules.agent.proposals import uuid_of_made
from control_plane.storage.data.index import Announcement, SourceIndex
from control_plane.storage.layout import RUN_ID, RunFiles

LOOK_EVERY_S = 0.25
"""Pause between two looks at sources with new shards. What comes in meanwhile is announced together."""

BETWEEN_S = 5.0
"""Least time from one announcement of a source, taken in by the ranks, to the next one. The first shard after a while
is announced at once; of a stream of requests, many shards come with one command, which all ranks vote on."""

ASKED_S = 2.0
"""Pause for a source of which a person is asked whether an agent's shards may be announced."""

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
        self,
        runs_dir: Path,
        runs: Runs,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        between_s: float = BETWEEN_S,
    ) -> None:
        """Announce the shards of the runs in `runs_dir`; `between_s`: see `BETWEEN_S`."""
        self._runs_dir, self._runs, self._sleep, self._between_s = runs_dir, runs, sleep, between_s
        # Sources that may have something to announce, and the monotonic time before which there is no use in a look.
        self._open: dict[tuple[str, str], float] = {}
        # The monotonic time before which a source's next announcement is not made.
        self._next_at: dict[tuple[str, str], float] = {}

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
            if max(not_before_s, self._next_at.get((run, source), 0.0)) > now_s:
                continue
            try:
                pause_s = await self._announce(run, source)
            except (SteerwayError, OSError) as error:
                log.warning("shards of source %s of run %s: %s", source, run, getattr(error, "reason", error))
                pause_s = WITHOUT_PROGRESS_S
            if pause_s is None:
                self._open.pop((run, source), None)
                self._next_at.pop((run, source), None)
            elif pause_s:
                self._open[run, source] = now_s + pause_s

    def _with_index(self) -> list[tuple[str, str]]:
        """Return the sources that have taken something in."""
        found = self._runs_dir.glob("*/data/*/index.sqlite")
        return [(path.parts[-4], path.parts[-2]) for path in found if RUN_ID.fullmatch(path.parts[-4])]

    async def _announce(self, run: str, source: str) -> float | None:
        """Make the next announcements of a source, or look at their outcome. Return the seconds until another look.

        None: nothing waits.
        """
        folder = RunFiles(self._runs_dir / run).data / source
        if not (folder / "index.sqlite").is_file():
            return None  # the run was deleted
        index = await asyncio.to_thread(SourceIndex, folder, source)
        announcements = await asyncio.to_thread(index.next_announcements)
        if not announcements:
            return None
        try:
            handle = await self._runs.handle(run)
        except NotFound:
            return None  # the run is gone
        pauses = [await self._go_on(handle, index, one, source) for one in announcements]
        if None in pauses:  # one has just been taken in
            self._next_at[run, source] = time.monotonic() + self._between_s
        return min(pause or 0.0 for pause in pauses)

    async def _go_on(
        self, handle: OperatorPort, index: SourceIndex, announcement: Announcement, source: str
    ) -> float | None:
        """Make an announcement, or note its outcome. Return the seconds until another look.

        None: the ranks have taken it in, and it was not full.
        """
        try:
            if announcement.sender.role == AGENT:
                view = await self._view_of_proposed(handle, announcement, source)
                if view is None:
                    return ASKED_S
            else:
                view = await self._view(handle, announcement, source)
        except (RunEnded, Overloaded):
            return WITHOUT_PROGRESS_S
        except Refused as refusal:
            await asyncio.to_thread(index.settle, announcement.uuid, "refused", None, refusal.reason)
            return 0.0
        if view is None or view.settled is None:
            return 0.0
        settled, after = view.settled, view.settled.after or {}
        if settled.status == "applied":
            step = after.get(FIRST_STEP, settled.step)
            await asyncio.to_thread(index.settle, announcement.uuid, "live", step, None)
            return None if len(announcement.shards) < MAX_SHARDS else 0.0
        await asyncio.to_thread(
            index.settle, announcement.uuid, "refused", settled.step, settled.reason or settled.status
        )
        return 0.0

    async def _view(self, handle: OperatorPort, announcement: Announcement, source: str) -> CommandView | None:
        """Return the announcement's command, which is posted if the run does not know it."""
        try:
            return await handle.command(announcement.uuid)
        except NotFound:
            intent = AddShards(source=source, shards=announcement.shards)
            sender = announcement.sender
            await handle.submit(Command(uuid=announcement.uuid, author=sender.author, role=sender.role, intent=intent))
            return None

    async def _view_of_proposed(
        self, handle: OperatorPort, announcement: Announcement, source: str
    ) -> CommandView | None:
        """Return the command that came of the proposal to add an agent's shards; None while a person is asked.

        The proposal names the shards by their hashes, and they wait on the disk. Raises `Refused` if it was not made.
        """
        intent = AddShards(source=source, shards=announcement.shards)
        try:
            proposal = await handle.command(announcement.uuid)
        except NotFound:
            sender, shas = announcement.sender, ", ".join(shard.sha256[:12] for shard in announcement.shards)
            reason = f"records of {sender.author}; they wait on the disk as {shas}"
            proposed = Propose(intent=intent)
            await handle.submit(
                Command(
                    uuid=announcement.uuid,
                    author=sender.author,
                    role=sender.role,
                    intent=proposed,
                    reason=reason[:MAX_NOTE_CHARS],
                )
            )
            return None
        if proposal.settled is not None and proposal.settled.status != "applied":
            raise Refused(proposal.settled.reason or proposal.settled.status)
        snapshot = await handle.snapshot()
        view = next((one for one in snapshot.agent.proposals if one.uuid == announcement.uuid), None)
        if view is not None and view.verdict is None:
            return None
        try:
            made = await handle.command(uuid_of_made(announcement.uuid))
        except NotFound:
            told = "closed" if view is None else f"{view.verdict}{f' by {view.by}' if view.by else ''}"
            note = f": {view.note}" if view is not None and view.note else ""
            raise Refused(f"the proposal to take them in was {told}{note}") from None
        if made.command.intent != intent:
            raise Refused("the proposal to take them in was edited, and something else was done")
        return made
