"""The two interfaces of a run's control server: what operators call, and what trainers call.

`ControlServer` implements both in the same process, `RayHandle` across Ray; callers need not know which. `ArchivedRun`
implements the operators' only. Every call is idempotent: commands and generations by their uuid, outcomes because they
are facts. Every method may raise `Unavailable` or `Fenced`.
"""

from typing import Protocol
from uuid import UUID

from control_plane.api.messages import (
    CommandView,
    Measurements,
    MetricSummary,
    Offer,
    Receipt,
    Report,
    Snapshot,
    StepRange,
    Trajectories,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.records import Death, Ending, Entry, GenerationEnding
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint


class OperatorPort(Protocol):
    """Calls of people, agents and the gateway."""

    async def submit(self, command: Command) -> Receipt:
        """Make a command durable; idempotent by its uuid. Raises `Refused`."""
        ...

    async def command(self, uuid: UUID) -> CommandView:
        """Return a command's status. Raises `NotFound`."""
        ...

    async def snapshot(self) -> Snapshot:
        """Return the run's current state, with its latest commands."""
        ...

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """Return at most `limit` entries after `after_seq`; waits up to `wait_s` for the first."""
        ...

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """Return at most `limit` points after the cursor `after`."""
        ...

    async def results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        """Return a summary of each metric over each step range; none where nothing was measured."""
        ...

    async def trajectories(self) -> Trajectories:
        """Return every branch with its interventions."""
        ...


class TrainerPort(Protocol):
    """Calls of the driver and of rank 0. Reports of an earlier or failed generation raise `Conflict` (fencing)."""

    async def snapshot(self) -> Snapshot:
        """See `OperatorPort.snapshot`."""
        ...

    async def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """Return the resume point for the script's `call`-th `train()`; `fingerprint` is of its model and data.

        Raises `RunEnded` if the run is closed or in a crash loop; `Refused` if the training cannot be identified.
        """
        ...

    async def resume(self, author: str, back: bool = False) -> None:
        """Resume the run after its driver or its cluster was lost.

        Raises `Conflict` if it has finished, unless `back`: a rollback follows.
        """
        ...

    async def fail_generation(self, generation: int, deaths: tuple[Death, ...], failure: UUID | None = None) -> None:
        """Report that the trainers of this generation failed; idempotent by `failure`, the report's uuid.

        Closes the run in a crash loop. Raises `Conflict` if another generation has begun.
        """
        ...

    async def start_generation(self, start: GenerationStart) -> int:
        """Begin a generation and return its number. Idempotent by its uuid. Raises `RunEnded`."""
        ...

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """Return the unsettled commands; waits up to `wait_s` for a revision other than `seen_revision`."""
        ...

    async def report(self, report: Report) -> None:
        """Take outcomes, measurements and progress from rank 0. Raises `Conflict` for an earlier generation."""
        ...

    async def end_generation(self, generation: int, ending: GenerationEnding, step: int, reason: str | None) -> None:
        """End a generation."""
        ...

    async def close(self, ending: Ending, reason: str | None) -> None:
        """Close the run; pending commands expire."""
        ...
