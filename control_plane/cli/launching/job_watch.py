"""Liveness of a run's Ray job, as the gateway sees it: a driver that died cannot close its run."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from control_plane.api.messages import Snapshot
from control_plane.core.model.errors import Unavailable

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

GRACE_S = 15.0
"""A job may end shortly before its run is closed; wait this long before calling the run dead."""

ASK_EVERY_S = 5.0


class JobWatch:
    """Asks the gateway from time to time for the job of a run."""

    def __init__(self, client: "SteerwayClient", run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self.run, self._clock = client, run, clock
        self._ask_at = clock()
        self._ended_at: float | None = None

    def dead(self, snapshot: Snapshot) -> str | None:
        """Return a message once the last job has ended and the run is still not closed after `GRACE_S`, else None."""
        now = self._clock()
        if now < self._ask_at:
            return None
        self._ask_at = now + ASK_EVERY_S
        try:
            job = self._client.job(self.run)
        except Unavailable:
            return None
        if job.is_alive or job.status == "none":
            self._ended_at = None
            return None
        self._ended_at = now if self._ended_at is None else self._ended_at
        if now - self._ended_at < GRACE_S:
            return None
        return (
            f"the Ray job of run {snapshot.run} has ended ({job.status}), but the run was never closed; "
            f"restart it with `steer resume {snapshot.run}`"
        )


def job_is_gone(client: "SteerwayClient", run: str) -> bool:
    """Return whether Ray has no live job for this run; False if that is not known."""
    try:
        return not client.job(run).is_alive
    except Unavailable:
        return False
