"""Surroundings of housekeeping in memory: jobs and a cluster that a test sets."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from control_plane.api.messages import Receipt, RunSummary
from control_plane.core.model.commands import Command
from control_plane.core.rules.capacity import ClusterState, Node
from control_plane.core.rules.run_deletion import ENDED, RunFacts
from control_plane.gateway.app import RunDirectory
from control_plane.storage.layout import RunFiles, job_number


@dataclass
class Surroundings:
    """One node with some CPUs, and the runs of a directory. Satisfies `housekeeping.Surroundings`."""

    runs: RunDirectory
    cpus: float = 2.0
    jobs: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    ended_at_s: dict[str, float] = field(default_factory=dict)
    started: int = 0
    closed: list[tuple[str, str]] = field(default_factory=list)
    on_start: Callable[[], Awaitable[None]] | None = None

    async def summaries(self) -> Sequence[RunSummary]:
        return await self.runs.list()

    async def living_jobs(self) -> frozenset[str]:
        return frozenset(self.jobs)

    async def job_is_alive(self, run: str) -> bool:
        return any(job_number(run, job) is not None for job in self.jobs)

    async def cluster(self) -> ClusterState:
        return ClusterState((Node("a", {"CPU": self.cpus}, {"CPU": self.cpus}, {}),), ())

    async def start_waiting(self) -> None:
        self.started += 1
        if self.on_start is not None:
            await self.on_start()

    async def close_unstarted(self, files: RunFiles, command: Command, reason: str) -> Receipt:
        self.closed.append((files.run, reason))
        return Receipt(uuid=command.uuid, run=files.run, seq=1, status="applied")

    def files(self, run: str) -> RunFiles:
        return self.runs.files(run)

    async def has_pinned(self, run: str) -> bool:
        return run in self.pinned

    def facts(self, summary: RunSummary) -> RunFacts:
        parent = summary.parent.run if summary.parent is not None else None
        ended_at_s = self.ended_at_s.get(summary.run) if summary.status in ENDED else None
        return RunFacts(summary.run, summary.status, summary.owner, parent, ended_at_s)
