"""Ray jobs of runs, as the gateway looks at them: which job is a run's newest, and how it ended."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.api.launching import JobStatus, JobView
from control_plane.core.model.characters import one_line
from control_plane.storage.layout import job_number

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "stopped"})

MAX_SUMMARY_CHARS = 400
"""Ray's message holds up to 20,000 characters of the log; its first and its last line say the most."""

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_LOGS_FOLLOW = re.compile(r",? last available logs.*")


class JobLookup(Protocol):
    """Lookup interface for the Ray job of a run."""

    async def job(self, run: str) -> JobView:
        """Return the run's newest job; its status is `none` without one, `unknown` if Ray does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class RayJob:
    """One job as Ray knows it. `name`: its submission id; `run`: the run in its metadata, None if it is not of ours."""

    name: str
    run: str | None
    status: JobStatus
    message: str = ""


class JobsOfRay(Protocol):
    """Access to Ray's Jobs API."""

    async def list(self) -> Sequence[RayJob]:
        """Return every job. Raises `Unavailable` if Ray does not answer."""
        ...


def newest_jobs(jobs: Iterable[RayJob]) -> dict[str, RayJob]:
    """Return the newest job of each run."""
    newest: dict[str, tuple[int, RayJob]] = {}
    for job in jobs:
        number = job_number(job.run, job.name) if job.run is not None else None
        if job.run is not None and number is not None and number >= newest.get(job.run, (0, job))[0]:
            newest[job.run] = number, job
    return {run: job for run, (_, job) in newest.items()}


def without_colours(text: str) -> str:
    """Return a log's text without the sequences that colour it in a terminal."""
    return _COLOUR.sub("", text)


def summary(message: str) -> str:
    """Return what a message of Ray says: its first line, and the last one of the log that follows."""
    lines = [line for each in message.splitlines() if (line := one_line(without_colours(each)).strip())]
    if not lines:
        return ""
    first = _LOGS_FOLLOW.sub("", lines[0]).rstrip(":. ")
    return (f"{first}: {lines[-1]}" if len(lines) > 1 else first)[:MAX_SUMMARY_CHARS]
