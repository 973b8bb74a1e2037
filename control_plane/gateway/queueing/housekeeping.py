"""Housekeeping of an installation's runs: starts queued runs, completes deletions, removes ended runs past their time.

Any number of gateways may do it at once, and each may die at any moment: decisions are made under a lock between
processes, from files, by rules; a decision that was half carried out is carried out again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from control_plane.api.messages import Receipt, RunSummary
from control_plane.api.queueing import DeletedRun, QueuedStart, StartQueue, Usage
from control_plane.config import Role
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, SteerwayError
from control_plane.core.rules.capacity import ClusterState, describe_demand
from control_plane.core.rules.run_deletion import QUEUED, RunFacts, check_deletable, check_may_delete, expired_runs
from control_plane.gateway.launching.background import begin
from control_plane.runs.deletion import Deletion, Deletions
from control_plane.runs.queue_files import QueueEntry, QueueFolder
from control_plane.runs.queued_run import QueuedRun, utc
from control_plane.runs.quotas import QuotaFile, quotas_path
from control_plane.runs.start_plan import StartPlan, in_order, plan_starts
from control_plane.runs.usage import UsageMeter, by_owner, owner_of
from control_plane.server.archive import ArchivedRun
from control_plane.storage.layout import RunFiles

LOOK_EVERY_S = 1.0
TIDY_EVERY_S = 60.0
AFTER_AN_ERROR_S = 5.0
RETENTION = "retention"
"""Who deletes ended runs past their time, by the audit's lines."""

log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """Access to Ray and to the runs of the gateway, for housekeeping."""

    async def summaries(self) -> Sequence[RunSummary]:
        """Return a summary of every run."""
        ...

    async def living_jobs(self) -> frozenset[str]:
        """Return the submission ids of Ray's jobs that have not ended. Raises `Unavailable`."""
        ...

    async def job_is_alive(self, run: str) -> bool:
        """Return whether a job of the run is alive, or may be."""
        ...

    async def cluster(self) -> ClusterState:
        """Return the cluster's nodes and groups. Raises `Unavailable`."""
        ...

    async def start_waiting(self) -> None:
        """Hand those queued runs to Ray that may start. Raises `SteerwayError`."""
        ...

    async def close_unstarted(self, files: RunFiles, command: Command, reason: str) -> Receipt:
        """Record in the journal of a run that has never begun that it was stopped by this command."""
        ...

    def files(self, run: str) -> RunFiles:
        """Return the run's files. Raises `NotFound`."""
        ...

    async def has_pinned(self, run: str) -> bool:
        """Return whether somebody has pinned a checkpoint of the run, or whether that is not known."""
        ...

    def facts(self, summary: RunSummary) -> RunFacts:
        """Return what decides on a run's deletion."""
        ...


@dataclass(frozen=True, slots=True)
class _Look:
    entries: list[QueueEntry]
    plan: StartPlan


class Housekeeping:
    """Housekeeping of one home. Implements `HousekeepingPort`."""

    def __init__(self, home: Path, around: Surroundings, wall_clock: Callable[[], float] = time.time) -> None:
        self._around, self._wall_clock = around, wall_clock
        self._folder, self._deletions = QueueFolder(home), Deletions(home)
        self._past: dict[str, ArchivedRun] = {}
        self._quotas, self._meter = QuotaFile(quotas_path(home)), UsageMeter(home / "runs")

    async def queue(self, sees: Callable[[str], bool]) -> StartQueue:
        """See `HousekeepingPort.queue`."""
        look = await self._look()
        waiting = [
            QueuedStart(
                place=place,
                run=entry.run,
                owner=entry.owner,
                priority=entry.priority,
                since=utc(entry.since_s),
                needs=describe_demand(entry.demand),
                reason=entry.reason or "starts now",
            )
            for place, entry in enumerate(in_order(look.entries, look.plan), start=1)
        ]
        ended = {entry.run for entry in look.plan.ended}
        started = sum(1 for entry in look.entries if not entry.is_queued and entry.run not in ended)
        return StartQueue(waiting=tuple(each for each in waiting if sees(each.run)), started=started)

    async def usage(self, sees: Callable[[str], bool]) -> Usage:
        """See `HousekeepingPort.usage`."""
        runs = await asyncio.to_thread(self._meter.read, sees)
        book = self._quotas.book()
        owners = by_owner(runs, lambda owner: book.of(owner).bytes)
        return Usage(runs=runs, owners=owners, total=sum(run.total for run in runs))

    async def delete(self, run: str, by: str, role: Role) -> DeletedRun:
        """See `HousekeepingPort.delete`."""
        files = self._around.files(run)
        seen = await asyncio.to_thread(self._folder.entry, run)
        check_may_delete(by, role, run, await asyncio.to_thread(owner_of, files))
        facts = [self._around.facts(summary) for summary in await self._around.summaries()]
        own = next((each for each in facts if each.run == run), RunFacts(run, "unknown"))
        check_deletable(own, facts, own.status != QUEUED and await self._around.job_is_alive(run))
        decision = await asyncio.to_thread(self._delete, files, seen, by, role, "asked for")
        begin(asyncio.to_thread(self._deletions.complete))
        return DeletedRun(run=run, owner=decision.owner, size_bytes=decision.size_bytes)

    def _delete(self, files: RunFiles, seen: QueueEntry | None, by: str, role: str, because: str) -> Deletion:
        """Delete a run, unless its queue entry is not the one that was `seen`: then it was started meanwhile."""
        with self._folder.deciding():
            now = self._folder.entry(files.run)
            if (now and (now.state, now.job)) != (seen and (seen.state, seen.job)):
                raise Conflict(f"run {files.run} is being started: `steer stop {files.run}` first")
            decision = self._deletions.delete(files, by, role, because)
            self._folder.remove(files.run)
        return decision

    async def queued(self, run: str) -> QueuedRun | None:
        """Return a handle on a run that waits in the queue, or None."""
        entry = await asyncio.to_thread(self._folder.entry, run)
        if entry is None or not entry.is_queued:
            self._past.pop(run, None)
            return None
        files = self._around.files(run)
        past = self._past.get(run)
        if files.journal.is_dir() and (past is None or past.has_gone_on()):
            past = self._past[run] = ArchivedRun(files)
        return QueuedRun(entry, past, self.stop_queued)

    async def stop_queued(self, entry: QueueEntry, command: Command) -> Receipt:
        """Take a run out of the queue; one that has never begun is closed as stopped. See `runs.queued_run`."""
        files = self._around.files(entry.run)
        await asyncio.to_thread(self._withdraw, entry)
        return await self._around.close_unstarted(files, command, f"stopped by {command.author} while it was queued")

    def _withdraw(self, entry: QueueEntry) -> None:
        with self._folder.deciding():
            now = self._folder.entry(entry.run)
            if now is None or not now.is_queued:
                raise Conflict(f"run {entry.run} is no longer in the queue: it is being started; repeat the command")
            self._folder.remove(entry.run)

    async def run_forever(self) -> None:
        """Look after the queue every second, and after deletions and retention every minute."""
        tidied_at = float("-inf")
        while True:
            pause_s = LOOK_EVERY_S
            try:
                await self.start_runs()
                if time.monotonic() - tidied_at >= TIDY_EVERY_S:
                    tidied_at = time.monotonic()
                    await self.tidy()
            except SteerwayError as error:
                log.warning("housekeeping: %s", error.reason)
                pause_s = AFTER_AN_ERROR_S
            except Exception:
                log.exception("housekeeping failed; it goes on")
                pause_s = AFTER_AN_ERROR_S
            await asyncio.sleep(pause_s)

    async def start_runs(self) -> None:
        """Start the queued runs that may start, and keep the reasons of the others current."""
        entries = await asyncio.to_thread(self._folder.entries)
        if not any(entry.is_queued for entry in entries):
            return
        look = await self._look()
        if look.plan.starting:
            await self._around.start_waiting()
        else:
            await asyncio.to_thread(self._note_reasons, look)

    def _note_reasons(self, look: _Look) -> None:
        changed = [entry for entry in look.entries if entry.is_queued and entry.reason != look.plan.reason(entry.run)]
        if not changed:
            return
        with self._folder.deciding():
            for entry in changed:
                if (now := self._folder.entry(entry.run)) is not None and now.is_queued:
                    self._folder.write(now.model_copy(update={"reason": look.plan.reason(entry.run)}))

    async def tidy(self) -> None:
        """Complete deletions, and delete ended runs that are past their time."""
        await asyncio.to_thread(self._deletions.complete)
        keep_days = self._quotas.book().keep_ended_days
        if keep_days is None:
            return
        facts = [self._around.facts(summary) for summary in await self._around.summaries()]
        for run in expired_runs(facts, keep_days, self._wall_clock()):
            seen = await asyncio.to_thread(self._folder.entry, run)
            if await self._around.job_is_alive(run) or await self._around.has_pinned(run):
                continue
            with suppress(SteerwayError):
                because = f"ended more than {keep_days:g} days ago"
                await asyncio.to_thread(self._delete, self._around.files(run), seen, RETENTION, "admin", because)
        await asyncio.to_thread(self._deletions.complete)

    async def _look(self) -> _Look:
        jobs, cluster = await asyncio.gather(self._around.living_jobs(), self._around.cluster())
        entries = await asyncio.to_thread(self._folder.entries)
        return _Look(entries, plan_starts(entries, jobs, cluster, self._quotas.book(), self._wall_clock()))
