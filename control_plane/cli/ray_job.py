"""Whether a Ray job that executes a run is still there: a driver that died cannot close its run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control_plane.cli.machine import cluster_record
from control_plane.config import Settings
from control_plane.handle import Snapshot
from control_plane.storage.layout import job_number

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

GRACE_S = 15.0
"""Between the end of the job and the end of the run there may be a moment in which only the first is known."""

ASK_EVERY_S = 5.0


class JobWatch:
    """Asks Ray's Jobs API over HTTP, now and then."""

    def __init__(self, where: Settings, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._run, self._clock = where, run, clock
        self._ask_at = clock()
        self._ended_at: float | None = None

    def dead(self, snapshot: Snapshot) -> str | None:
        """The sentence that says so, once the last job has been over for a while and the run is not closed."""
        now = self._clock()
        if now < self._ask_at:
            return None
        self._ask_at = now + ASK_EVERY_S
        jobs = jobs_of(self._where, self._run)
        if not jobs or not all(status in ENDED for status in jobs.values()):
            self._ended_at = None
            return None
        self._ended_at = now if self._ended_at is None else self._ended_at
        if now - self._ended_at < GRACE_S:
            return None
        last = list(jobs.values())[-1]
        return (
            f"the Ray job of run {snapshot.run} has {last.lower()}, but the run was never closed; "
            f"have it go on with `steer resume {snapshot.run}`"
        )


def job_is_gone(where: Settings, run: str) -> bool:
    """Whether Ray knows of no job that is executing this run. False if Ray does not answer: then nobody knows."""
    jobs = jobs_of(where, run)
    return jobs is not None and all(status in ENDED for status in jobs.values())


def jobs_of(where: Settings, run: str) -> dict[str, str] | None:
    """The run's jobs and their statuses in Ray's words, the first one first; None if Ray does not answer."""
    listed = _list_jobs(where)
    if listed is None:
        return None
    found: list[tuple[int, str, str]] = []
    for job in listed:
        name = str(job.get("submission_id") or "")
        if (number := job_number(run, name)) is not None:
            found.append((number, name, str(job.get("status"))))
    return {name: status for _, name, status in sorted(found)}


def _list_jobs(where: Settings) -> list[dict[str, Any]] | None:
    import httpx

    token_file = cluster_record(where).get("ray_environment", {}).get("RAY_AUTH_TOKEN_PATH")
    try:
        headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"} if token_file else {}
        # No proxy of the environment may see the token.
        answer = httpx.get(f"{where.dashboard_url}/api/jobs/", headers=headers, timeout=5.0, trust_env=False)
        jobs = answer.json() if answer.is_success else None
    except (OSError, httpx.HTTPError, ValueError):
        return None
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else None
