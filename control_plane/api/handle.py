"""What anyone may ask of a run's control server.

`ControlServer` is one such handle, in the same process; `RayHandle` is the same across Ray. Whoever holds a handle
need not know which. Every call may be repeated: commands by their uuid, a generation by its uuid, outcomes because
they are facts.
"""

from typing import Literal, Protocol
from uuid import UUID

from pydantic import Field

from control_plane.core.model.commands import Command, Words
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    MAIN,
    CheckpointCommitted,
    CheckpointFailed,
    CommandSettled,
    Death,
    Ending,
    Entry,
    GenerationEnding,
    Parent,
    RankPlace,
    Reading,
    StateDigested,
)
from control_plane.core.rules.crash_loop import Attempt
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint

MAX_TAIL_ENTRIES = 1000
"""Entries in one answer of `tail`."""

MAX_WAIT_S = 30.0
"""The longest a long poll may be held."""

ADOPTION_WAIT_S = 120.0
"""So long an adoption may take beyond any other command: every byte of the other run's checkpoint is read before."""

Phase = Literal["starting", "training", "evaluating", "saving", "paused", "ended"]


class Receipt(Words):
    """The command is durable. `seq` is its place in the journal; `status` what has become of it by now."""

    uuid: UUID
    run: str
    seq: int
    status: str


class Progress(Words):
    """Where rank 0 is. Not a decision: it is never journalled."""

    step: int
    total_steps: int
    phase: Phase = "training"
    steps_per_s: float | None = None


class Point(Words):
    """One measurement: `value` may be NaN or infinite, and is kept so. `time_s` is Unix time."""

    step: int
    name: str = Field(max_length=64)
    value: float
    time_s: float
    branch: str = MAIN
    training: int = Field(default=1, description="which of the script's trainings it is of")


class Measurements(Words):
    """Points in the order of arrival. Ask again with `after=cursor` for what came since."""

    points: tuple[Point, ...]
    cursor: int


class Restart(Words):
    """What a generation that resumes measured of its own start; times are Unix times, of rank 0's node."""

    started_at_s: float
    loaded_s: float = Field(ge=0, description="from rank 0's first line to a restored state")
    first_step_s: float = Field(ge=0, description="from there to the end of the first step")
    step: int


class Report(Words):
    """What rank 0's link tells the control server."""

    generation: int
    outcomes: tuple[CommandSettled, ...] = ()
    checkpoints: tuple[CheckpointCommitted, ...] = ()
    failed_checkpoints: tuple[CheckpointFailed, ...] = ()
    digests: tuple[StateDigested, ...] = ()
    restart: Restart | None = None
    points: tuple[Point, ...] = ()
    progress: Progress | None = None
    dropped_points: int = 0


class Stretch(Words):
    """Part of a branch: from step `first` to step `last`, both included; to its end without `last`."""

    branch: str = MAIN
    first: int = 0
    last: int | None = None


class Measured(Words):
    """A measurement where it was made."""

    step: int
    value: float


class Result(Words):
    """What a metric came to on a stretch: the newest value, and the lowest one that is a number."""

    name: str
    stretch: Stretch
    last: Measured
    lowest: Measured | None = None


class Offer(Words):
    """The unsettled commands, oldest first. `revision` moves whenever that list does."""

    commands: tuple[Command, ...]
    revision: int


class CommandView(Words):
    """One command and what has become of it."""

    command: Command
    what: str
    status: str
    accepted_seq: int
    accepted_at: str
    settled: CommandSettled | None = None
    settled_at: str | None = None
    branch: str = Field(default=MAIN, description="where it was settled; until then, where it was asked for")


class RecoveryView(Words):
    """One loss of the trainers and the way back. `phases_s` and `lost_steps` are known when it is over."""

    generation: int
    lost_at: str
    step: int
    silent_s: float = 0.0
    deaths: tuple[Death, ...] = ()
    checkpoint: str | None = None
    resumed_step: int | None = None
    world_size: int | None = None
    lost_steps: int | None = None
    phases_s: dict[str, float] = {}
    branch: str = MAIN

    @property
    def over(self) -> bool:
        """Whether the run makes steps again."""
        return self.lost_steps is not None


class Restarting(Words):
    """The trainers failed, and are started again: `wait_s` after the last failure, of so many without a new step."""

    failures: int
    wait_s: float = Field(ge=0)
    left_s: float = Field(ge=0)
    alert: bool = Field(description="that many are worth a warning")
    reason: str


class BranchView(Words):
    """One branch of a run: where it left its parent, what it began with, and how far it has come.

    One without a parent in its run may have its `origin` in another one: what was forked, or adopted.
    """

    branch: str
    parent: str | None = None
    checkpoint: str | None = None
    step: int = 0
    reached_step: int = 0
    commands: int = Field(default=0, description="applied on this branch, those that it began with included")
    first: tuple[str, ...] = Field(default=(), description="the changes that it began with, in words")
    newest_checkpoint: str | None = None
    head: bool = False
    origin: Parent | None = None


class Intervention(Words):
    """A command that changed the training of a branch, at the boundary after `step`.

    `first`: the branch began with it. `before` and `after` are what the ranks read.
    """

    uuid: UUID
    step: int
    what: str
    author: str
    reason: str | None = None
    first: bool = False
    before: Reading = {}
    after: Reading = {}


class Trajectory(Words):
    """A branch, what was done on it, oldest first, and the knobs as its trainers had them last."""

    branch: BranchView
    knobs: Reading = {}
    interventions: tuple[Intervention, ...] = ()


class Trajectories(Words):
    """Everything that a run has tried."""

    run: str
    status: str
    head: str
    total_steps: int
    parent: Parent | None = None
    branches: tuple[Trajectory, ...]
    checkpoints: tuple[CheckpointCommitted, ...] = ()


class Snapshot(Words):
    """A run as it is now, for people. `progress_age_s` says how long ago rank 0 was last heard.

    `seq` is the entry of the journal up to which this is true: a command may say that it is based on it.
    """

    run: str
    name: str
    status: str
    seq: int
    term: int
    generation: int
    created_at: str
    step: int
    total_steps: int
    phase: Phase | None = None
    steps_per_s: float | None = None
    progress_age_s: float | None = None
    ranks: tuple[RankPlace, ...] = ()
    knobs: Reading = {}
    knob_facts: Reading = Field(default={}, description="type, bounds and description of each knob, by name")
    limits: dict[str, Limit] = Field(default={}, description="what the run's owner allows, by knob or pattern")
    facts: Reading = {}
    latest: dict[str, float] = {}
    commands: tuple[CommandView, ...] = ()
    checkpoints: tuple[CheckpointCommitted, ...] = ()
    recoveries: tuple[RecoveryView, ...] = ()
    reason: str | None = None
    restarting: Restarting | None = None
    attempts: tuple[Attempt, ...] = Field(default=(), description="failures of the trainers without a new step")
    branch: str = MAIN
    branches: tuple[BranchView, ...] = ()
    parent: Parent | None = None

    @property
    def closed(self) -> bool:
        """Whether the run is over."""
        return self.status in ("finished", "stopped", "failed")


class RunSummary(Words):
    """One line of the list of runs. `world_size` counts the ranks of the current or last generation.

    `branch` is the one that is trained, of `branches`.
    """

    run: str
    name: str
    status: str
    step: int
    total_steps: int
    created_at: str
    world_size: int
    branch: str = MAIN
    branches: tuple[str, ...] = (MAIN,)
    parent: Parent | None = None

    @classmethod
    def of(cls, snapshot: Snapshot) -> "RunSummary":
        """A run's line in the list of runs."""
        return cls(
            run=snapshot.run,
            name=snapshot.name,
            status=snapshot.status,
            step=snapshot.step,
            total_steps=snapshot.total_steps,
            created_at=snapshot.created_at,
            world_size=len(snapshot.ranks),
            branch=snapshot.branch,
            branches=tuple(each.branch for each in snapshot.branches),
            parent=snapshot.parent,
        )


class RunHandle(Protocol):
    """One run's control server, wherever it lives. Every method may raise `Unavailable` or `Fenced`."""

    async def submit(self, command: Command) -> Receipt:
        """Make a command durable. Raises `Refused`."""
        ...

    async def command(self, uuid: UUID) -> CommandView:
        """One command's life. Raises `NotFound`."""
        ...

    async def snapshot(self) -> Snapshot:
        """The run as it is now, with its latest commands."""
        ...

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """Entries after `after_seq`, at most `limit`; waits up to `wait_s` for the first."""
        ...

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """Points after the cursor `after`, at most `limit`."""
        ...

    async def results(self, stretches: tuple[Stretch, ...], names: tuple[str, ...]) -> tuple[Result, ...]:
        """What these metrics came to on each stretch; nothing for one without a measurement."""
        ...

    async def trajectories(self) -> Trajectories:
        """Every branch, with what was done on it."""
        ...

    async def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """What new trainers start from, in the script's `call`-th `train()`; `fingerprint` is of its model and data.

        Raises `RunEnded` if the run is closed, or if starting again is hopeless; `Refused` if it cannot be told which
        of its trainings that is.
        """
        ...

    async def resume(self, author: str, back: bool = False) -> None:
        """Have the run go on after its driver or its cluster was lost.

        Raises `Conflict` if it has finished, unless it is to go `back`: a rollback follows.
        """
        ...

    async def lose_generation(self, generation: int, deaths: tuple[Death, ...], loss: UUID | None = None) -> None:
        """The driver found the trainers of this generation dead; `loss` makes telling it twice harmless.

        Raises `Conflict` if another generation has begun. Closes the run if to start once more makes no sense.
        """
        ...

    async def start_generation(self, start: GenerationStart) -> int:
        """The trainers begin; answers the generation's number. Raises `RunEnded`."""
        ...

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """The unsettled commands; waits up to `wait_s` for a revision other than `seen_revision`."""
        ...

    async def report(self, report: Report) -> None:
        """Outcomes, measurements and progress from rank 0. Raises `Conflict` for an earlier generation."""
        ...

    async def end_generation(self, generation: int, ending: GenerationEnding, step: int, reason: str | None) -> None:
        """The trainers ended."""
        ...

    async def close(self, ending: Ending, reason: str | None) -> None:
        """The run is over; what is pending expires."""
        ...
