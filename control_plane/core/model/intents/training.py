"""Intents that change the training: knobs, schedule, parameters, data, and a script's own actions."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from control_plane.core.model.intent_base import ACTION, LEARNING_RATE, TrainingIntent
from control_plane.core.model.values import (
    MAX_ARGUMENTS,
    MAX_CHANGES,
    MAX_FACTOR,
    MAX_LEARNING_RATE,
    MAX_SCHEDULE_STEPS,
    MAX_SEED,
    MAX_SKIPPED_SAMPLES,
    Change,
    Factor,
    GroupChoice,
    Name,
    Scalar,
    check_group,
    check_value_or_factor,
    spelled,
    spelled_factor,
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
        change = f"= {self.value:g}" if self.value is not None else f"x {spelled_factor(self.factor or 1.0)}"
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
