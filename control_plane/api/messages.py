"""Messages of a run's control server to operators and trainers."""

from typing import Literal
from uuid import UUID

from pydantic import Field

from control_plane.api.agent_views import AgentView
from control_plane.core.model.commands import Command
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.health import Alert, HealthChange
from control_plane.core.model.intent_base import LEARNING_RATE, Message
from control_plane.core.model.intents.agent import AgentMode
from control_plane.core.model.knobs import KnobSpec
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    MAIN,
    CheckpointCommitted,
    CheckpointFailed,
    CommandSettled,
    Death,
    Parent,
    RankPlace,
    Readback,
    StateDigested,
)
from control_plane.core.rules.crash_loop import Attempt

MAX_TAIL_ENTRIES = 1000
"""Entries in one answer of `tail`."""

MAX_WAIT_S = 30.0
"""The longest a long poll may be held."""

ADOPTION_WAIT_S = 120.0
"""Extra time allowed for an adoption: every byte of the other run's checkpoint is verified first."""

Phase = Literal["starting", "training", "evaluating", "saving", "paused", "ended"]


class Receipt(Message):
    """Acknowledgement that a command is durable. `seq`: its journal entry; `status`: its current status."""

    uuid: UUID
    run: str
    seq: int
    status: str


class Progress(Message):
    """Progress of rank 0. Not a decision: it is never recorded in the journal."""

    step: int
    total_steps: int
    phase: Phase = "training"
    steps_per_s: float | None = None


class Point(Message):
    """One measurement. `value` may be NaN or infinite; `time_s` is Unix time."""

    step: int
    name: str = Field(max_length=64)
    value: float
    time_s: float
    branch: str = MAIN
    training: int = Field(default=1, description="which of the script's trainings it is of")


class Measurements(Message):
    """Points in order of arrival. Request again with `after=cursor` for later ones."""

    points: tuple[Point, ...]
    cursor: int


class Restart(Message):
    """Startup timings of a generation that resumes; `started_at_s` is Unix time of rank 0's node."""

    started_at_s: float
    loaded_s: float = Field(ge=0, description="from rank 0's first line to a restored state")
    first_step_s: float = Field(ge=0, description="from there to the end of the first step")
    step: int


class Report(Message):
    """Report of rank 0 to the control server."""

    generation: int
    outcomes: tuple[CommandSettled, ...] = ()
    checkpoints: tuple[CheckpointCommitted, ...] = ()
    failed_checkpoints: tuple[CheckpointFailed, ...] = ()
    digests: tuple[StateDigested, ...] = ()
    restart: Restart | None = None
    points: tuple[Point, ...] = ()
    progress: Progress | None = None
    dropped_points: int = 0
    health: tuple[HealthChange, ...] = Field(default=(), description="oldest first; kept until they are confirmed")


class StepRange(Message):
    """Step range of a branch, from `first` to `last`, both included; without `last` to its end."""

    branch: str = MAIN
    first: int = 0
    last: int | None = None


class MeasuredValue(Message):
    """A measured value and its step."""

    step: int
    value: float


class MetricSummary(Message):
    """Summary of a metric over a step range: the newest value, and the lowest that is not NaN."""

    name: str
    stretch: StepRange
    last: MeasuredValue
    lowest: MeasuredValue | None = None


class Offer(Message):
    """The unsettled commands, oldest first. `revision` changes whenever that list does."""

    commands: tuple[Command, ...]
    revision: int


class CommandView(Message):
    """A command and its status."""

    command: Command
    what: str
    status: str
    accepted_seq: int
    accepted_at: str
    settled: CommandSettled | None = None
    settled_at: str | None = None
    branch: str = Field(default=MAIN, description="where it was settled; until then, where it was asked for")


AlertStage = Literal["open", "acknowledged", "snoozed", "cleared"]


class AlertView(Message):
    """An alert and what has become of it. `seq` names it, `current`: it is of the branch that is trained now.

    `reflex` answered it with `commands`, or declined to, for the reason `declined`.
    """

    seq: int
    alert: Alert
    stage: AlertStage
    raised_at: str
    current: bool = True
    cleared_step: int | None = None
    cleared_at: str | None = None
    acknowledged_by: str | None = None
    note: str | None = None
    snoozed_until: int | None = Field(default=None, description="the step; None: until it has cleared")
    reflex: str = ""
    declined: str = ""
    commands: tuple[UUID, ...] = ()

    @property
    def needs_attention(self) -> bool:
        """True if it belongs into the inbox."""
        return self.stage == "open" and self.current


class Alerts(Message):
    """Alerts of a run, oldest first, at its step `step`."""

    run: str
    step: int
    alerts: tuple[AlertView, ...]


class RecoveryView(Message):
    """One failure of the trainers and the recovery. `phases_s` and `lost_steps` are set when it is over."""

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
        """True if the run makes steps again."""
        return self.lost_steps is not None


class Restarting(Message):
    """Pending restart of failed trainers: `wait_s` is the backoff after the last failure, `failures` those without a
    new step."""

    failures: int
    wait_s: float = Field(ge=0)
    left_s: float = Field(ge=0)
    alert: bool = Field(description="that many are worth a warning")
    reason: str


class BranchView(Message):
    """One branch of a run: its fork point, initial changes and progress.

    `origin` is set if it starts in another run: on a fork, or an adopted branch.
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


class Intervention(Message):
    """A command that changed the training of a branch, at the boundary after `step`.

    `first`: the branch began with it. `before` and `after` are what the ranks read.
    """

    uuid: UUID
    step: int
    what: str
    author: str
    reason: str | None = None
    first: bool = False
    before: Readback = {}
    after: Readback = {}


class Trajectory(Message):
    """A branch with its interventions, oldest first, and its last known knobs."""

    branch: BranchView
    knobs: Readback = {}
    interventions: tuple[Intervention, ...] = ()


class Trajectories(Message):
    """All branches of a run."""

    run: str
    status: str
    head: str
    total_steps: int
    parent: Parent | None = None
    branches: tuple[Trajectory, ...]
    checkpoints: tuple[CheckpointCommitted, ...] = ()


class Snapshot(Message):
    """Current state of a run, for people. `progress_age_s`: seconds since rank 0's last report.

    `seq` is the last journal entry included; a command may be based on it (`based_on_seq`).
    """

    run: str
    name: str
    status: str
    seq: int
    term: int
    generation: int
    created_at: str
    owner: str | None = Field(default=None, description="whose token submitted the run; None: not known")
    step: int
    total_steps: int
    phase: Phase | None = None
    steps_per_s: float | None = None
    progress_age_s: float | None = None
    ranks: tuple[RankPlace, ...] = ()
    knobs: Readback = {}
    knob_facts: Readback = Field(default={}, description="type, bounds and description of each knob, by name")
    limits: dict[str, Limit] = Field(default={}, description="what the run's owner allows, by knob or pattern")
    facts: Readback = {}
    latest: dict[str, float] = {}
    commands: tuple[CommandView, ...] = ()
    checkpoints: tuple[CheckpointCommitted, ...] = ()
    recoveries: tuple[RecoveryView, ...] = ()
    reason: str | None = None
    restarting: Restarting | None = None
    alerts: tuple[AlertView, ...] = Field(default=(), description="those that need attention, and the newest others")
    reflexes: tuple[str, ...] = Field(default=(), description="kinds of alerts that a reflex answers")
    agent: AgentView = Field(default=AgentView(), description="the run's agent and its proposals")
    mixture: dict[str, Readback] = Field(default={}, description="the sources of its data, as the ranks read them back")
    sources_added: dict[str, SourceSettings] = Field(default={}, description="sources that commands have added")
    attempts: tuple[Attempt, ...] = Field(default=(), description="failures of the trainers without a new step")
    branch: str = MAIN
    branches: tuple[BranchView, ...] = ()
    parent: Parent | None = None

    @property
    def closed(self) -> bool:
        """True if the run is closed."""
        return self.status in ("finished", "stopped", "failed")

    def knob_spec(self, name: str) -> KnobSpec:
        """Return a knob's specification; a number without bounds, if the trainers list none or a malformed one."""
        listed = KnobSpec.parse(name, self.knob_facts.get(name))
        return listed or KnobSpec(name, per_group=name == LEARNING_RATE)


class RunSummary(Message):
    """One line of the list of runs. `world_size` counts the ranks of the current or last generation.

    `branch` is the current one of `branches`.
    """

    run: str
    name: str
    status: str
    step: int
    total_steps: int
    created_at: str
    world_size: int
    owner: str | None = None
    reason: str | None = Field(default=None, description="why the run waits in the queue, or how it ended")
    branch: str = MAIN
    branches: tuple[str, ...] = (MAIN,)
    parent: Parent | None = None
    agent: AgentMode | None = Field(default=None, description="mode of the run's agent, if one is started")

    @classmethod
    def of(cls, snapshot: Snapshot) -> "RunSummary":
        """Return a run's line in the list of runs."""
        return cls(
            run=snapshot.run,
            name=snapshot.name,
            status=snapshot.status,
            step=snapshot.step,
            total_steps=snapshot.total_steps,
            created_at=snapshot.created_at,
            world_size=len(snapshot.ranks),
            owner=snapshot.owner,
            reason=snapshot.reason,
            branch=snapshot.branch,
            branches=tuple(each.branch for each in snapshot.branches),
            parent=snapshot.parent,
            agent=snapshot.agent.settings.mode if snapshot.agent.settings is not None else None,
        )
