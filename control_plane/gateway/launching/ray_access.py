"""Ray jobs and watched runs on a real cluster: what the job watch needs of Ray and of the runs' files."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from control_plane.actor.control_actor import retire
from control_plane.actor.remote import RayHandle
from control_plane.api.launching import RUN_OF_JOB, JobStatus
from control_plane.config import Settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import NotFound, Unavailable
from control_plane.core.model.state import RunState, fold
from control_plane.gateway.launching.jobs import RayJob, without_colours
from control_plane.gateway.routes import read_log_tail
from control_plane.runs.queue_files import QueueFolder
from control_plane.storage.direct_jobs import run_of_job
from control_plane.storage.journal import writer
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles, find_run

ANSWER_WITHIN_S = 10.0
RETIRE_AFTER_S = 1.0
"""Whoever follows the run receives its end from the control server."""

LOG_LINES = 3
MAX_LOG_CHARS = 600

STATUSES: dict[str, JobStatus] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}


class RayJobs:
    """Ray's Jobs API, as this process reaches it: with its own environment and token. Implements `JobsOfRay`."""

    def __init__(self, where: Settings) -> None:
        self._where = where
        self._client: Any = None

    async def list(self) -> Sequence[RayJob]:
        """See `JobsOfRay.list`."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await asyncio.to_thread(self._list)
        except (TimeoutError, ConnectionError, RuntimeError, ValueError, RayError) as error:
            self._client = None
            reason = one_line(str(error))[:MAX_LOG_CHARS] or "no answer in time"
            raise Unavailable(f"Ray's dashboard at {self._where.dashboard_url} does not answer: {reason}") from None

    def _list(self) -> Sequence[RayJob]:
        if self._client is None:
            self._client = JobSubmissionClient(self._where.dashboard_url)
        return [
            RayJob(
                name=job.submission_id,
                run=(job.metadata or {}).get(RUN_OF_JOB) or run_of_job(self._where.home, job.submission_id),
                status=STATUSES.get(job.status.value, "unknown"),
                message=job.message or "",
            )
            for job in self._client.list_jobs()
            if job.submission_id
        ]


class RunsOnRay:
    """Runs of this installation, closed through their control actors. Implements `WatchedRuns`."""

    def __init__(self, where: Settings) -> None:
        self._where, self._queue = where, QueueFolder(where.home)

    async def state(self, run: str) -> RunState | None:
        """See `WatchedRuns.state`."""
        try:
            files = find_run(self._where.runs_dir, run)
        except NotFound:
            return None
        return await asyncio.to_thread(_state_of, files)

    async def queued_because(self, run: str) -> str | None:
        """See `WatchedRuns.queued_because`."""
        entry = await asyncio.to_thread(self._queue.entry, run)
        return (entry.reason or "") if entry is not None and entry.is_queued else None

    async def close(self, run: str, reason: str) -> None:
        """See `WatchedRuns.close`."""
        files = find_run(self._where.runs_dir, run)
        end = await asyncio.to_thread(_end_of_log, files)
        await RayHandle(files).close("failed", redaction_of(files).text(one_line(f"{reason}{end}")))
        await asyncio.sleep(RETIRE_AFTER_S)
        await asyncio.to_thread(retire, files)


def _state_of(files: RunFiles) -> RunState:
    """Return a run's state; that of a run which nobody has opened is empty."""
    return fold(writer.read(files.journal)) if files.journal.is_dir() else RunState()


def _end_of_log(files: RunFiles) -> str:
    """Return the last lines of the driver's log, as the end of a reason; empty without a log."""
    try:
        text = without_colours(read_log_tail(files, "driver", LOG_LINES).text).strip()
    except NotFound:
        return ""
    return f"; its log ends: {text[-MAX_LOG_CHARS:]}" if text else ""
