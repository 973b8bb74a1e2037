"""Intents: the typed bodies of commands, validated on construction, with their bounds.

    a run's course     Pause, Resume, Stop, Evaluate
    its knobs          SetLearningRate, SetSchedule, SetKnobs
    its parameters     Freeze, Unfreeze, ResetParameters
    its data           SkipSamples
    its own actions    RunAction
    checkpoints        SaveCheckpoint, PinCheckpoint, DeleteCheckpoint
    its branches       Rollback, AdoptCheckpoint
    its alerts         AcknowledgeAlert, SnoozeAlert
    other commands     Cancel

`decisions` decides whether an intent *may* happen; the ranks vote at the step boundary whether they *can* do it.
Intents of `server_intents` need no ranks: the control server does them itself.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args
from uuid import UUID

from pydantic import (
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from control_plane.core.model.intent_base import ACTION, LEARNING_RATE, BaseIntent, TrainingIntent
from control_plane.core.model.server_intents import (
    AcknowledgeAlert,
    AdoptCheckpoint,
    DeleteCheckpoint,
    PinCheckpoint,
    SnoozeAlert,
)
from control_plane.core.model.values import (
    MAX_ARGUMENTS,
    MAX_CHANGES,
    MAX_FACTOR,
    MAX_FIRST,
    MAX_LABEL_CHARS,
    MAX_LEARNING_RATE,
    MAX_NOTE_CHARS,
    MAX_SCHEDULE_STEPS,
    MAX_SEED,
    MAX_SKIPPED_SAMPLES,
    BranchName,
    Change,
    Factor,
    GroupChoice,
    Name,
    Scalar,
    check_group,
    check_value_or_factor,
    spelled,
)


class SetLearningRate(TrainingIntent):
    """Set the learning rate from the next step on.

    Give `value` (absolute) or `factor` (times the live value of each group). `schedule="keep"` keeps the shape of
    what is left of the schedule, starting from the new value; `"hold"` keeps the new value until the next change.
    `group` is the index or the name of one parameter group; without it every group is set.
    """

    sets_knobs: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["set_learning_rate"] = "set_learning_rate"
    value: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False, strict=True)
    factor: Factor | None = None
    group: GroupChoice = None
    schedule: Literal["keep", "hold"] = "keep"

    _group = field_validator("group")(check_group)
    _change = model_validator(mode="after")(check_value_or_factor)

    def describe(self) -> str:
        change = f"= {self.value:g}" if self.value is not None else f"x {self.factor:g}"
        notes = [] if self.group is None else [f"group {self.group}"]
        notes += ["hold"] if self.schedule == "hold" else []
        return f"lr {change}" + (f" ({', '.join(notes)})" if notes else "")

    def knobs(self) -> tuple[str, ...]:
        return (LEARNING_RATE,)

    def groups(self) -> tuple[int | str | None, ...]:
        return (self.group,)

    def requested(self, knob: str) -> Iterable[tuple[Any, float | None]]:
        return ((self.value, self.factor),)


class SetKnobs(TrainingIntent):
    """Change one or several knobs at one step boundary, all or none (atomic)."""

    sets_knobs: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["set_knobs"] = "set_knobs"
    changes: tuple[Change, ...] = Field(min_length=1, max_length=MAX_CHANGES)

    @model_validator(mode="after")
    def _each_once(self) -> "SetKnobs":
        targets = [change.target for change in self.changes]
        twice = next((change.knob for change in self.changes if targets.count(change.target) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is changed twice in one command")
        return self

    def describe(self) -> str:
        return ", ".join(change.describe() for change in self.changes)

    def knobs(self) -> tuple[str, ...]:
        return tuple(change.knob for change in self.changes)

    def changed_knobs(self, after: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Return the knobs that it names, and those that its patterns matched, as the ranks read them back."""
        return tuple(dict.fromkeys((*self.knobs(), *(after or {}))))

    def groups(self) -> tuple[int | str | None, ...]:
        return tuple(change.group for change in self.changes)

    def requested(self, knob: str) -> Iterable[tuple[Any, float | None]]:
        return ((change.value, change.factor) for change in self.changes if change.knob == knob)


class SetSchedule(TrainingIntent):
    """Replace what is left of the learning rate's schedule, from the next step on, in every group.

    Each group goes from its live value: up or down to `peak` times it within `warmup_steps`, if there are any; then, in
    `shape`, to `end` times that within `over_steps` (by default: the steps that are left); then it stays.
    """

    sets_knobs: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["set_schedule"] = "set_schedule"
    shape: Literal["constant", "linear", "cosine"]
    end: float = Field(default=0.0, ge=0, le=MAX_FACTOR, allow_inf_nan=False, strict=True)
    warmup_steps: int = Field(default=0, ge=0, le=MAX_SCHEDULE_STEPS, strict=True)
    peak: Factor = 1.0
    over_steps: int | None = Field(default=None, ge=1, le=MAX_SCHEDULE_STEPS, strict=True)

    def describe(self) -> str:
        notes = [f"warm-up {self.warmup_steps} to x {self.peak:g}"] if self.warmup_steps else []
        notes += [] if self.shape == "constant" else [f"to x {self.end:g}"]
        notes += [f"over {self.over_steps} steps"] if self.over_steps else []
        return f"schedule {self.shape}" + (f" ({', '.join(notes)})" if notes else "")

    def knobs(self) -> tuple[str, ...]:
        return (LEARNING_RATE,)


class Freeze(TrainingIntent):
    """Freeze the parameters whose names match a pattern (`transformer.h.0.*`) from the next step on."""

    sets_knobs: ClassVar[bool] = True

    kind: Literal["freeze"] = "freeze"
    parameters: Name

    def describe(self) -> str:
        return f"{self.kind} {self.parameters}"


class Unfreeze(TrainingIntent):
    """Train the parameters whose names match a pattern again."""

    sets_knobs: ClassVar[bool] = True

    kind: Literal["unfreeze"] = "unfreeze"
    parameters: Name

    def describe(self) -> str:
        return f"{self.kind} {self.parameters}"


class ResetParameters(TrainingIntent):
    """Give the modules whose names match a pattern fresh weights, the same on every rank; their moments become zero.

    The weights follow from `seed` and the modules' names alone.
    """

    kind: Literal["reset_parameters"] = "reset_parameters"
    modules: Name
    seed: int = Field(default=0, ge=0, le=MAX_SEED, strict=True)

    def describe(self) -> str:
        return f"reset {self.modules} (seed {self.seed})"


class SkipSamples(TrainingIntent):
    """Leave out the next samples of the global order, on every rank: the next step takes those that come after them.

    `samples` is rounded up to whole global batches. The step counter, the schedule and the number of steps of the run
    stay as they are; where an epoch ends within the samples that are left out, the next one follows.
    """

    kind: Literal["skip_samples"] = "skip_samples"
    samples: int = Field(ge=1, le=MAX_SKIPPED_SAMPLES, strict=True)

    def describe(self) -> str:
        return f"skip {self.samples} sample{'s' if self.samples > 1 else ''}"


class RunAction(TrainingIntent):
    """Carry out an action that the training script has registered."""

    allowed_for_agents: ClassVar[bool] = True
    agents_need_grant: ClassVar[bool] = True

    kind: Literal["run_action"] = "run_action"
    name: Name
    arguments: dict[Name, Scalar] = Field(default={}, max_length=MAX_ARGUMENTS)

    def describe(self) -> str:
        arguments = ", ".join(f"{name} = {spelled(value)}" for name, value in self.arguments.items())
        return f"run {self.name}" + (f" ({arguments})" if arguments else "")

    def knobs(self) -> tuple[str, ...]:
        return (ACTION + self.name,)


class Pause(TrainingIntent):
    """Hold every rank at the next step boundary. Commands are still taken while the run is paused."""

    kind: Literal["pause"] = "pause"


class Resume(TrainingIntent):
    """Resume a paused run."""

    kind: Literal["resume"] = "resume"


class Stop(TrainingIntent):
    """End the training at the next step boundary, with a last checkpoint if `save` is set."""

    kind: Literal["stop"] = "stop"
    save: bool = False


class Evaluate(BaseIntent):
    """Evaluate on the evaluation set at the next step boundary."""

    is_replayed: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["evaluate"] = "evaluate"


class SaveCheckpoint(BaseIntent):
    """Save a checkpoint at the next step boundary. With `pin` it is kept until it is unpinned.

    `name` is what the checkpoint is called where a recorded run is replayed; others are named by their step.
    """

    is_replayed: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["save_checkpoint"] = "save_checkpoint"
    label: str | None = Field(default=None, max_length=MAX_LABEL_CHARS)
    note: str | None = Field(default=None, max_length=MAX_NOTE_CHARS)
    pin: bool = False
    name: Annotated[str, Field(pattern=r"^step-[0-9]{8,}-g[0-9]+(-[0-9]+)?$", strict=True)] | None = None


First = Annotated[
    SetLearningRate | SetKnobs | SetSchedule | Freeze | Unfreeze | SkipSamples, Field(discriminator="kind")
]
"""Intents allowed as initial changes of a branch."""


class Rollback(BaseIntent):
    """Roll back to a checkpoint as a new branch, or switch to an existing branch.

    With `checkpoint`: a new branch starts there, named `branch` or by a number, with the changes of `first` applied
    before its first step. Without: training continues on the existing `branch` from its newest checkpoint.
    Steps and commands since then stay on their own branch.
    """

    changes_course: ClassVar[bool] = True
    is_replayed: ClassVar[bool] = True

    kind: Literal["rollback"] = "rollback"
    checkpoint: Name | None = None
    branch: BranchName | None = None
    first: tuple[First, ...] = Field(default=(), max_length=MAX_FIRST)

    @model_validator(mode="after")
    def _somewhere_to_go(self) -> "Rollback":
        if self.checkpoint is None and self.branch is None:
            raise ValueError("give 'checkpoint' (starts a new branch there) or 'branch' (switches to an existing one)")
        if self.checkpoint is None and self.first:
            raise ValueError("switching to an existing branch takes no initial changes; send them separately")
        return self

    def describe(self) -> str:
        if self.checkpoint is None:
            return f"switch to branch {self.branch}"
        named = f" as {self.branch}" if self.branch else ""
        return f"back to {self.checkpoint}{named}" + "".join(f", {change.describe()}" for change in self.first)

    def parts(self) -> tuple[BaseIntent, ...]:
        return (self, *self.first)


class Cancel(BaseIntent):
    """Cancel a command that is not settled. If it is applied first, the cancel is rejected."""

    is_queued: ClassVar[bool] = False

    kind: Literal["cancel"] = "cancel"
    command: UUID

    def describe(self) -> str:
        return f"cancel {self.command}"


Intent = Annotated[
    SetLearningRate
    | SetKnobs
    | SetSchedule
    | Freeze
    | Unfreeze
    | ResetParameters
    | SkipSamples
    | RunAction
    | Pause
    | Resume
    | Stop
    | Evaluate
    | SaveCheckpoint
    | PinCheckpoint
    | DeleteCheckpoint
    | Rollback
    | AdoptCheckpoint
    | AcknowledgeAlert
    | SnoozeAlert
    | Cancel,
    Field(discriminator="kind"),
]
INTENT: TypeAdapter[Intent] = TypeAdapter(Intent)

KINDS: Mapping[str, type[BaseIntent]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Intent)[0])
}
"""Every intent kind by its name."""
