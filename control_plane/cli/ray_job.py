"""Whether the Ray job that executes a run is still there: a driver that died cannot close its run."""

import time
from collections.abc import Callable
from pathlib import Path

from control_plane.cli.machine import cluster_record
from control_plane.config import Settings
from control_plane.handle import Snapshot

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

GRACE_S = 15.0
"""Between the end of the job and the end of the run there may be a moment in which only the first is known."""

ASK_EVERY_S = 5.0


class JobWatch:
    """Asks Ray's Jobs API over HTTP, now and then."""

    def __init__(self, where: Settings, job: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._job, self._clock = where, job, clock
        self._ask_at = clock()
        self._ended_at: float | None = None

    def dead(self, snapshot: Snapshot) -> str | None:
        """The sentence that says so, once the job has been over for a while and the run is not closed."""
        now = self._clock()
        if now < self._ask_at:
            return None
        self._ask_at = now + ASK_EVERY_S
        status = job_status(self._where, self._job)
        if status not in ENDED:
            self._ended_at = None
            return None
        self._ended_at = now if self._ended_at is None else self._ended_at
        if now - self._ended_at < GRACE_S:
            return None
        return f"the Ray job of run {snapshot.run} has {status.lower()}, but the run was never closed"


def job_status(where: Settings, job: str) -> str | None:
    """The job's status in Ray's words, or None if Ray does not answer."""
    import httpx

    token_file = cluster_record(where).get("ray_environment", {}).get("RAY_AUTH_TOKEN_PATH")
    try:
        headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"} if token_file else {}
        # No proxy of the environment may see the token.
        answer = httpx.get(f"{where.dashboard_url}/api/jobs/{job}", headers=headers, timeout=5.0, trust_env=False)
        return str(answer.json()["status"]) if answer.is_success else None
    except (OSError, httpx.HTTPError, ValueError, KeyError):
        return None
