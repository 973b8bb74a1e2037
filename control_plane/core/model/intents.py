"""Intents: the typed bodies of commands, validated on construction, with their bounds.

    a run's course     Pause, Resume, Stop, Evaluate
    its knobs          SetLearningRate, SetSchedule, SetKnobs
    its parameters     Freeze, Unfreeze, ResetParameters
    its own actions    RunAction
    checkpoints        SaveCheckpoint, PinCheckpoint, DeleteCheckpoint
    its branches       Rollback, AdoptCheckpoint
    other commands     Cancel

`decisions` decides whether an intent *may* happen; the ranks vote at the step boundary whether they *can* do it.
Pinning, deleting and adopting a checkpoint need no ranks: the control server does them itself.
"""

from typing import Annotated, Literal, TypeVar
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    field_validator,
    model_validator,
)

MAX_LEARNING_RATE = 10.0
"""Above this no optimizer trains anything; such a value is a typo (1e4 for 1e-4)."""

MAX_FACTOR = 1000.0
"""The most by which one change may multiply or divide a value."""

MAX_LABEL_CHARS = 80
MAX_NOTE_CHARS = 2000
MAX_NAME_CHARS = 200
MAX_CHANGES = 32
"""Changes per command: more than a person needs, and bounds the duration of the boundary."""

MAX_ARGUMENTS = 16
MAX_VALUES = 8
"""Numbers in one value: betas have two."""

MAX_NAMES_TOLD = 5
"""Names listed in an error message."""

MAX_FIRST = 8
"""Initial changes of a branch."""

RUN_ID = r"[a-z0-9][a-z0-9_-]{0,63}"
MAX_SEED = 2**63 - 1
MAX_SCHEDULE_STEPS = 2**31


class Message(BaseModel):
    """Base of every immutable message between processes (frozen pydantic model): unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


# Strict: a JSON `true` is not a learning rate of 1.0.
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Factor = Annotated[float, Field(ge=1 / MAX_FACTOR, le=MAX_FACTOR, allow_inf_nan=False, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, strict=True)]
# 64-bit, so that bounds can be compared with it and every JSON reader can keep it.
Whole = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED, strict=True)]
Scalar = StrictBool | Whole | Finite | Annotated[StrictStr, Field(max_length=MAX_NAME_CHARS)]
KnobValue = StrictBool | Whole | Finite | Annotated[tuple[Finite, ...], Field(min_length=1, max_length=MAX_VALUES)]
GroupChoice = StrictInt | StrictStr | None
BranchName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$", strict=True)]
# It becomes the name of a folder, which is removed when the checkpoint is discarded: never a path.
CheckpointName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$", strict=True)]
RunId = Annotated[str, Field(pattern=f"^{RUN_ID}$", strict=True)]


def check_group(group: int | str | None) -> int | str | None:
    """Validate a parameter group: an index from 0 or a name."""
    if isinstance(group, int) and group < 0:
        raise ValueError("a parameter group is counted from 0")
    if isinstance(group, str) and not 0 < len(group) <= MAX_LABEL_CHARS:
        raise ValueError(f"a group name has 1 to {MAX_LABEL_CHARS} characters")
    return group


ValueOrFactor = TypeVar("ValueOrFactor", "SetLearningRate", "Change")


def check_value_or_factor(change: ValueOrFactor) -> ValueOrFactor:
    """Validate that a change has either `value` or `factor`."""
    if (change.value is None) == (change.factor is None):
        raise ValueError("give either 'value' or 'factor', not both and not neither")
    return change


class SetLearningRate(Message):
    """Set the learning rate from the next step on.

    Give `value` (absolute) or `factor` (times the live value of each group). `schedule="keep"` keeps the shape of
    what is left of the schedule, starting from the new value; `"hold"` keeps the new value until the next change.
    `group` is the index or the name of one parameter group; without it every group is set.
    """

    kind: Literal["set_learning_rate"] = "set_learning_rate"
    value: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False, strict=True)
    factor: Factor | None = None
    group: GroupChoice = None
    schedule: Literal["keep", "hold"] = "keep"

    _group = field_validator("group")(check_group)
    _change = model_validator(mode="after")(check_value_or_factor)


class Change(Message):
    """One knob's new value: `value`, or `factor` times what it is.

    `knob` is a name that the run lists (`weight_decay`, `gradient_clipping`, `eval_steps`, one of the script's own), or
    `PATTERN:ATTRIBUTE` for a number that modules of the model hold (`transformer.h.*.attn*:p`). `group` narrows a knob
    of the optimizer to one parameter group.
    """

    knob: Name
    value: KnobValue | None = None
    factor: Factor | None = None
    group: GroupChoice = None

    _group = field_validator("group")(check_group)
    _change = model_validator(mode="after")(check_value_or_factor)

    @property
    def target(self) -> tuple[str, str]:
        """Knob and group that the change applies to."""
        return self.knob, "" if self.group is None else str(self.group)

    def describe(self) -> str:
        """`weight_decay = 0.1 (group decay)`, `lr x 0.5`."""
        change = f"= {_spelled(self.value)}" if self.value is not None else f"x {self.factor:g}"
        return f"{self.knob} {change}" + (f" (group {self.group})" if self.group is not None else "")


class SetKnobs(Message):
    """Change one or several knobs at one step boundary, all or none (atomic)."""

    kind: Literal["set_knobs"] = "set_knobs"
    changes: tuple[Change, ...] = Field(min_length=1, max_length=MAX_CHANGES)

    @model_validator(mode="after")
    def _each_once(self) -> "SetKnobs":
        targets = [change.target for change in self.changes]
        twice = next((change.knob for change in self.changes if targets.count(change.target) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is changed twice in one command")
        return self


class SetSchedule(Message):
    """Replace what is left of the learning rate's schedule, from the next step on, in every group.

    Each group goes from its live value: up or down to `peak` times it within `warmup_steps`, if there are any; then, in
    `shape`, to `end` times that within `over_steps` (by default: the steps that are left); then it stays.
    """

    kind: Literal["set_schedule"] = "set_schedule"
    shape: Literal["constant", "linear", "cosine"]
    end: float = Field(default=0.0, ge=0, le=MAX_FACTOR, allow_inf_nan=False, strict=True)
    warmup_steps: int = Field(default=0, ge=0, le=MAX_SCHEDULE_STEPS, strict=True)
    peak: Factor = 1.0
    over_steps: int | None = Field(default=None, ge=1, le=MAX_SCHEDULE_STEPS, strict=True)


class Freeze(Message):
    """Freeze the parameters whose names match a pattern (`transformer.h.0.*`) from the next step on."""

    kind: Literal["freeze"] = "freeze"
    parameters: Name


class Unfreeze(Message):
    """Train the parameters whose names match a pattern again."""

    kind: Literal["unfreeze"] = "unfreeze"
    parameters: Name


class ResetParameters(Message):
    """Give the modules whose names match a pattern fresh weights, the same on every rank; their moments become zero.

    The weights follow from `seed` and the modules' names alone.
    """

    kind: Literal["reset_parameters"] = "reset_parameters"
    modules: Name
    seed: int = Field(default=0, ge=0, le=MAX_SEED, strict=True)


class RunAction(Message):
    """Carry out an action that the training script has registered."""

    kind: Literal["run_action"] = "run_action"
    name: Name
    arguments: dict[Name, Scalar] = Field(default={}, max_length=MAX_ARGUMENTS)


class Pause(Message):
    """Hold every rank at the next step boundary. Commands are still taken while the run is paused."""

    kind: Literal["pause"] = "pause"


class Resume(Message):
    """Let a paused run go on."""

    kind: Literal["resume"] = "resume"


class Stop(Message):
    """End the training at the next step boundary, with a last checkpoint if `save` is set."""

    kind: Literal["stop"] = "stop"
    save: bool = False


class Evaluate(Message):
    """Evaluate on the evaluation set at the next step boundary."""

    kind: Literal["evaluate"] = "evaluate"


class SaveCheckpoint(Message):
    """Save a checkpoint at the next step boundary. With `pin` it is kept until somebody removes it.

    `name` is what the checkpoint is called where a recorded run is replayed; others are named by their step.
    """

    kind: Literal["save_checkpoint"] = "save_checkpoint"
    label: str | None = Field(default=None, max_length=MAX_LABEL_CHARS)
    note: str | None = Field(default=None, max_length=MAX_NOTE_CHARS)
    pin: bool = False
    name: Annotated[str, Field(pattern=r"^step-[0-9]{8,}-g[0-9]+(-[0-9]+)?$", strict=True)] | None = None


class PinCheckpoint(Message):
    """Keep a checkpoint whatever the retention says; with `pinned=false`, leave it to the retention again."""

    kind: Literal["pin_checkpoint"] = "pin_checkpoint"
    checkpoint: Name
    pinned: bool = True


class DeleteCheckpoint(Message):
    """Remove a checkpoint. One that is pinned, in use, or the newest is refused."""

    kind: Literal["delete_checkpoint"] = "delete_checkpoint"
    checkpoint: Name


First = Annotated[SetLearningRate | SetKnobs | SetSchedule | Freeze | Unfreeze, Field(discriminator="kind")]
"""Intents allowed as initial changes of a branch."""


class Rollback(Message):
    """Roll back to a checkpoint as a new branch, or switch to an existing branch.

    With `checkpoint`: a new branch starts there, named `branch` or by a number, with the changes of `first` applied
    before its first step. Without: training continues on the existing `branch` from its newest checkpoint.
    Steps and commands since then stay on their own branch.
    """

    kind: Literal["rollback"] = "rollback"
    checkpoint: Name | None = None
    branch: BranchName | None = None
    first: tuple[First, ...] = Field(default=(), max_length=MAX_FIRST)

    @model_validator(mode="after")
    def _somewhere_to_go(self) -> "Rollback":
        if self.checkpoint is None and self.branch is None:
            raise ValueError("give 'checkpoint' (a new branch begins there) or 'branch' (one that there is goes on)")
        if self.checkpoint is None and self.first:
            raise ValueError("a branch that goes on begins with no changes; send them as commands of their own")
        return self


class AdoptCheckpoint(Message):
    """Copy a checkpoint of another run (e.g. of a fork) into this run, as the start of a new branch.

    Without `checkpoint`: the one that run would resume from. The branch is named `branch` or by a number. Training
    stays on the current branch; `rollback` with the new branch switches to it.
    """

    kind: Literal["adopt_checkpoint"] = "adopt_checkpoint"
    run: RunId
    checkpoint: Name | None = None
    branch: BranchName | None = None


class Cancel(Message):
    """Cancel a command that is not settled. If it is applied first it stays applied, and the cancel is rejected."""

    kind: Literal["cancel"] = "cancel"
    command: UUID


Intent = Annotated[
    SetLearningRate
    | SetKnobs
    | SetSchedule
    | Freeze
    | Unfreeze
    | ResetParameters
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
    | Cancel,
    Field(discriminator="kind"),
]
INTENT: TypeAdapter[Intent] = TypeAdapter(Intent)

CHANGES_TRAINING = (
    SetLearningRate,
    SetKnobs,
    SetSchedule,
    Freeze,
    Unfreeze,
    ResetParameters,
    RunAction,
    Pause,
    Resume,
    Stop,
)
"""After a failure these are repeated at the step where they took effect; the others do not change the training."""

NEEDS_NO_RANK = (PinCheckpoint, DeleteCheckpoint, AdoptCheckpoint)
"""The control server applies these itself."""


def describe(intent: Intent) -> str:
    """Return a short description: `lr = 0.0001`, `lr x 0.5 (group 1, hold)`, `weight_decay = 0.1, betas = ...`."""
    match intent:
        case SetLearningRate():
            return _learning_rate(intent)
        case SetKnobs():
            return ", ".join(change.describe() for change in intent.changes)
        case SetSchedule():
            return _schedule(intent)
        case Freeze() | Unfreeze():
            return f"{intent.kind} {intent.parameters}"
        case ResetParameters():
            return f"reset {intent.modules} (seed {intent.seed})"
        case RunAction():
            arguments = ", ".join(f"{name} = {_spelled(value)}" for name, value in intent.arguments.items())
            return f"run {intent.name}" + (f" ({arguments})" if arguments else "")
        case PinCheckpoint():
            return f"{'pin' if intent.pinned else 'unpin'} {intent.checkpoint}"
        case DeleteCheckpoint():
            return f"delete {intent.checkpoint}"
        case Rollback():
            return _rollback(intent)
        case AdoptCheckpoint():
            named = f" as {intent.branch}" if intent.branch else ""
            return f"adopt {intent.checkpoint or 'the newest checkpoint'} of {intent.run}{named}"
        case Cancel():
            return f"cancel {intent.command}"
        case _:
            return intent.kind.replace("_", " ")


def _rollback(intent: Rollback) -> str:
    if intent.checkpoint is None:
        return f"go on with branch {intent.branch}"
    named = f" as {intent.branch}" if intent.branch else ""
    return f"back to {intent.checkpoint}{named}" + "".join(f", {describe(each)}" for each in intent.first)


def _learning_rate(intent: SetLearningRate) -> str:
    change = f"= {intent.value:g}" if intent.value is not None else f"x {intent.factor:g}"
    notes = [] if intent.group is None else [f"group {intent.group}"]
    notes += ["hold"] if intent.schedule == "hold" else []
    return f"lr {change}" + (f" ({', '.join(notes)})" if notes else "")


def _schedule(intent: SetSchedule) -> str:
    notes = [f"warm-up {intent.warmup_steps} to x {intent.peak:g}"] if intent.warmup_steps else []
    notes += [] if intent.shape == "constant" else [f"to x {intent.end:g}"]
    notes += [f"over {intent.over_steps} steps"] if intent.over_steps else []
    return f"schedule {intent.shape}" + (f" ({', '.join(notes)})" if notes else "")


def _spelled(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_spelled(each) for each in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
