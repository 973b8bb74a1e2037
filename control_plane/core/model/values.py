"""Bounded value types of intents, a change of one knob, and the command that a replay leaves out."""

from typing import Annotated, Protocol, TypeVar
from uuid import UUID

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from control_plane.core.model.intent_base import Message

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

MAIN = "main"
"""The first branch of every run."""

MAX_PLACEBO = 1e-3
"""Largest relative change that still is a placebo: a change of the learning rate that nobody would ask for."""

LEAST_PLACEBO = 1e-12
"""Smaller changes of a float64 may be none at all."""

RUN_ID = r"[a-z0-9][a-z0-9_-]{0,63}"
MAX_SEED = 2**63 - 1
MAX_SCHEDULE_STEPS = 2**31
MAX_SKIPPED_SAMPLES = 10**9
"""Samples that one command leaves out; a larger number is a typo, and a stream would be read for days."""
MAX_STEP = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""


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


def check_placebo(placebo: float) -> float:
    """Validate the relative change of a placebo: small, and not zero."""
    if not LEAST_PLACEBO <= abs(placebo) <= MAX_PLACEBO:
        raise ValueError(f"a placebo changes the learning rate by {LEAST_PLACEBO:g} to {MAX_PLACEBO:g} of it")
    return placebo


Placebo = Annotated[float, Field(allow_inf_nan=False, strict=True), AfterValidator(check_placebo)]


class LeftOut(Message):
    """The command that a replay leaves out, to measure its effect, and where it took effect in the recorded run.

    placebo: relative change of the learning rate that takes effect in its place; None: nothing does.
    """

    command: UUID
    step: int = Field(ge=0)
    training: int = Field(default=1, ge=1)
    placebo: Placebo | None = None


class _Changing(Protocol):
    @property
    def value(self) -> object: ...

    @property
    def factor(self) -> float | None: ...


ValueOrFactor = TypeVar("ValueOrFactor", bound=_Changing)


def check_value_or_factor(change: ValueOrFactor) -> ValueOrFactor:
    """Validate that a change has either `value` or `factor`."""
    if (change.value is None) == (change.factor is None):
        raise ValueError("give either 'value' or 'factor', not both and not neither")
    return change


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
        change = f"= {spelled(self.value)}" if self.value is not None else f"x {spelled_factor(self.factor or 1.0)}"
        return f"{self.knob} {change}" + (f" (group {self.group})" if self.group is not None else "")


def spelled(value: object) -> str:
    """Return a knob's value as a description shows it."""
    if isinstance(value, tuple):
        return f"({', '.join(spelled(member) for member in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def spelled_factor(factor: float, digits: int = 6) -> str:
    """Return a factor as text, short, but never `1` for one that is not."""
    text = f"{factor:.{digits}g}"
    return repr(factor) if text == "1" and factor != 1 else text
