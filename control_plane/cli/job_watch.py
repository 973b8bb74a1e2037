"""Liveness of a run's Ray job: a driver that died cannot close its run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control_plane.api.messages import Snapshot
from control_plane.cli.cluster import cluster_record
from control_plane.config import Settings
from control_plane.storage.layout import job_number

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

GRACE_S = 15.0
"""A job may end shortly before its run is closed; wait this long before calling the run dead."""

ASK_EVERY_S = 5.0


class JobWatch:
    """Polls Ray's Jobs API over HTTP for the jobs of a run."""

    def __init__(self, where: Settings, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._run, self._clock = where, run, clock
        self._ask_at = clock()
        self._ended_at: float | None = None

    def dead(self, snapshot: Snapshot) -> str | None:
        """Return a message once the last job has ended and the run is still not closed after `GRACE_S`, else None."""
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
            f"the Ray job of run {snapshot.run} has ended ({last.lower()}), but the run was never closed; "
            f"restart it with `steer resume {snapshot.run}`"
        )


def job_is_gone(where: Settings, run: str) -> bool:
    """Return whether Ray has no live job for this run; False if Ray does not answer."""
    jobs = jobs_of(where, run)
    return jobs is not None and all(status in ENDED for status in jobs.values())


def jobs_of(where: Settings, run: str) -> dict[str, str] | None:
    """Return the run's jobs with their Ray job status, oldest first; None if Ray does not answer."""
    listed = _list_jobs(where)
    if listed is None:
        return None
    numbered: list[tuple[int, str, str]] = []
    for job in listed:
        name = str(job.get("submission_id") or "")
        if (number := job_number(run, name)) is not None:
            numbered.append((number, name, str(job.get("status"))))
    return {name: status for _, name, status in sorted(numbered)}


def _list_jobs(where: Settings) -> list[dict[str, Any]] | None:
    import httpx

    token_file = cluster_record(where).get("ray_environment", {}).get("RAY_AUTH_TOKEN_PATH")
    try:
        headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"} if token_file else {}
        # trust_env=False: no proxy from the environment may see the token.
        answer = httpx.get(f"{where.dashboard_url}/api/jobs/", headers=headers, timeout=5.0, trust_env=False)
        jobs = answer.json() if answer.is_success else None
    except (OSError, httpx.HTTPError, ValueError):
        return None
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else None
