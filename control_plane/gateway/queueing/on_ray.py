"""Surroundings of housekeeping on Ray: jobs, the cluster, control actors, and the process that hands runs to Ray."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from control_plane.actor.cluster_state import ClusterReader
from control_plane.actor.control_actor import retire
from control_plane.actor.remote import RayHandle
from control_plane.api.messages import Receipt, RunSummary
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.rules.capacity import ClusterState
from control_plane.core.rules.run_deletion import ENDED as ENDED_RUNS
from control_plane.core.rules.run_deletion import RunFacts
from control_plane.gateway.launching.child_process import run_child
from control_plane.gateway.launching.jobs import ENDED, JobsOfRay
from control_plane.programs import program
from control_plane.server.archive import ArchivedRun
from control_plane.storage.layout import RunFiles, job_number

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory

START_WITHIN_S = 150.0
MAX_LOGGED_CHARS = 4000

log = logging.getLogger(__name__)


class OnRay:
    """Surroundings of one gateway. Implements `housekeeping.Surroundings`."""

    def __init__(self, runs: "RunDirectory", jobs: JobsOfRay, environment: Mapping[str, str]) -> None:
        """`environment` is added to the gateway's own for the process that hands runs to Ray."""
        self._runs, self._jobs = runs, jobs
        self._environment, self._reader = dict(environment), ClusterReader()

    async def summaries(self) -> Sequence[RunSummary]:
        """See `Surroundings.summaries`."""
        return await self._runs.list()

    async def living_jobs(self) -> frozenset[str]:
        """See `Surroundings.living_jobs`."""
        return frozenset(job.name for job in await self._jobs.list() if job.status not in ENDED)

    async def job_is_alive(self, run: str) -> bool:
        """See `Surroundings.job_is_alive`."""
        return any(job_number(run, job) is not None for job in await self.living_jobs())

    async def cluster(self) -> ClusterState:
        """See `Surroundings.cluster`."""
        return await asyncio.to_thread(self._reader.read)

    async def start_waiting(self) -> None:
        """See `Surroundings.start_waiting`."""
        deadline = asyncio.get_running_loop().time() + START_WITHIN_S
        try:
            exit_code, _, err = await run_child(program("ray_jobs.service.start_waiting"), self._environment, deadline)
        except TimeoutError:
            raise Unavailable(f"queued runs were not started within {START_WITHIN_S:.0f} s; this is repeated") from None
        if exit_code:
            last = err.decode("utf-8", "replace").strip()[-MAX_LOGGED_CHARS:]
            raise Unavailable(f"queued runs could not be started; this is repeated: {last}")

    async def close_unstarted(self, files: RunFiles, command: Command, reason: str) -> Receipt:
        """See `Surroundings.close_unstarted`. A run that was being resumed stays as it was before."""
        if files.journal.is_dir():
            before = await ArchivedRun(files).snapshot()
            return Receipt(uuid=command.uuid, run=files.run, seq=before.seq, status="applied")
        handle = RayHandle(files)
        receipt = await handle.submit(command)
        await handle.close("stopped", reason)
        await asyncio.to_thread(retire, files)
        return receipt

    def files(self, run: str) -> RunFiles:
        """See `Surroundings.files`."""
        return self._runs.files(run)

    def facts(self, summary: RunSummary) -> RunFacts:
        """See `Surroundings.facts`."""
        parent = summary.parent.run if summary.parent is not None else None
        ended_at_s = _ended_at_s(self._runs.files(summary.run)) if summary.status in ENDED_RUNS else None
        return RunFacts(summary.run, summary.status, summary.owner, parent, ended_at_s)

    async def has_pinned(self, run: str) -> bool:
        """See `Surroundings.has_pinned`. What a fork has inherited is pinned by nobody."""
        try:
            snapshot = await ArchivedRun(self._runs.files(run)).snapshot()
        except SteerwayError:
            return True
        return any(checkpoint.pinned and checkpoint.generation > 0 for checkpoint in snapshot.checkpoints)


def _ended_at_s(files: RunFiles) -> float | None:
    """Return when a run's journal was last written to (Unix time): nobody writes to it after the end."""
    try:
        return max(path.stat().st_mtime for path in files.journal.iterdir())
    except (OSError, ValueError):
        return None
