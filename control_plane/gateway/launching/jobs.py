"""Ray jobs of runs, as the gateway looks at them: which job is a run's newest, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.api.launching import JobStatus, JobView
from control_plane.storage.layout import job_number

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "stopped"})

MAX_MESSAGE_CHARS = 500
"""Ray's message holds up to 20,000 characters of the log; its last line says the most."""


class JobLookup(Protocol):
    """Lookup interface for the Ray job of a run."""

    async def job(self, run: str) -> JobView:
        """Return the run's newest job; its status is `none` without one, `unknown` if Ray does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class RayJob:
    """One job as Ray knows it. `name`: its submission id."""

    name: str
    status: JobStatus
    message: str = ""


class JobsOfRay(Protocol):
    """Access to Ray's Jobs API."""

    async def list(self) -> Sequence[RayJob]:
        """Return every job. Raises `Unavailable` if Ray does not answer."""
        ...


def newest_job(run: str, jobs: Sequence[RayJob]) -> RayJob | None:
    """Return the newest job of a run, or None."""
    numbered = [(number, job) for job in jobs if (number := job_number(run, job.name)) is not None]
    return max(numbered, key=lambda pair: pair[0])[1] if numbered else None


def last_line(text: str) -> str:
    """Return the last line of a message that says something, cut to `MAX_MESSAGE_CHARS`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MAX_MESSAGE_CHARS] if lines else ""
