"""Messages of the start queue, of disk usage and of deletions of runs."""

from collections.abc import Callable
from typing import Protocol

from pydantic import Field

from control_plane.config import Role
from control_plane.core.model.intent_base import Message


class QueuedStart(Message):
    """One waiting run. `place`: from 1, in the order of the queue; `reason`: why it has not started."""

    place: int
    run: str
    owner: str
    priority: int
    since: str
    needs: str
    reason: str


class StartQueue(Message):
    """Answer of `GET /queue`: waiting runs, and how many runs hold resources or are about to."""

    waiting: tuple[QueuedStart, ...]
    started: int


class RunUsage(Message):
    """Bytes of one run's files."""

    run: str
    owner: str
    checkpoints: int = 0
    journal: int = 0
    metrics: int = 0
    code: int = 0
    work: int = 0
    logs: int = 0
    other: int = 0
    total: int = 0


class OwnerUsage(Message):
    """Bytes of all runs of one owner. `limit`: of the owner's quota, if there is one."""

    owner: str
    runs: int
    total: int
    limit: int | None = None


class Usage(Message):
    """Answer of `GET /usage`: the largest runs and owners first."""

    runs: tuple[RunUsage, ...]
    owners: tuple[OwnerUsage, ...]
    total: int


class DeletedRun(Message):
    """Answer of `DELETE /runs/{run}`: the run is gone from every list; its files are being removed."""

    run: str
    owner: str | None = None
    size_bytes: int = Field(description="of the run's files; those shared with a fork stay with the fork")


class HousekeepingPort(Protocol):
    """Queue, usage and deletion of an installation's runs. `sees`: whether a run is in the token's scope."""

    async def queue(self, sees: Callable[[str], bool]) -> StartQueue:
        """Return the start queue, with current reasons. Raises `Unavailable`."""
        ...

    async def usage(self, sees: Callable[[str], bool]) -> Usage:
        """Return the disk usage of runs."""
        ...

    async def delete(self, run: str, by: str, role: Role) -> DeletedRun:
        """Delete an ended or queued run. Raises `NotFound`, `NotAllowed`, `Conflict`, `Unavailable`."""
        ...
