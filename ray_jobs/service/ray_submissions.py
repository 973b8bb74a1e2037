"""Submissions of queue entries to Ray's Jobs API: each request's job once, whoever submits it and however often."""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from control_plane.api.launching import REQUEST_OF_JOB
from control_plane.config import Settings
from control_plane.core.model.errors import Unavailable
from control_plane.runs.queue_files import QueueEntry
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import find_run, job_name
from ray_jobs.service.starts import NotTaken
from ray_jobs.submit import all_jobs, jobs_of, submit_job


class RaySubmissions:
    """Ray's jobs of this installation. Implements `starts.Jobs`."""

    def __init__(self, where: Settings, connect: Callable[[], Any]) -> None:
        """`connect` returns a client of Ray's Jobs API. Raises `Unavailable` if Ray does not answer."""
        self._where, self._connect = where, connect

    def living(self) -> Iterable[str]:
        """See `Jobs.living`."""
        jobs = all_jobs(self._connect(), self._where)
        return [str(job.submission_id) for job in jobs if job.submission_id and not job.status.is_terminal()]

    def find(self, entry: QueueEntry) -> str | None:
        """See `Jobs.find`."""
        return submitted_job(jobs_of(self._connect(), self._where, entry.run), entry.request)

    def submit(self, entry: QueueEntry) -> str:
        """See `Jobs.submit`."""
        client, files = self._connect(), find_run(self._where.runs_dir, entry.run)
        jobs = jobs_of(client, self._where, entry.run)
        if (job := submitted_job(jobs, entry.request)) is not None:
            return job
        try:
            job = submit_job(client, files, self._where, entry.request, job_name(entry.run, max(jobs, default=0) + 1))
        except Unavailable as error:
            if (taken := self.find(entry)) is None:
                raise NotTaken(error) from None
            job = taken
        reach("launch", "after_submit")
        return job


def submitted_job(jobs: dict[int, Any], request: UUID) -> str | None:
    """Return the name of the job that was submitted for a request, or None."""
    return next(
        (job.submission_id for job in jobs.values() if (job.metadata or {}).get(REQUEST_OF_JOB) == str(request)), None
    )
