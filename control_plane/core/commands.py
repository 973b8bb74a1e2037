"""What a person or an agent may ask of a running job.

A `Command` is an immutable request: a uuid that its sender chose, so that sending it twice is harmless; an author;
a reason; and an intent, the typed body. Intents are imperatives. Everything here is checked when it is built, so a
command that exists is well-formed; whether it *may* happen is decided in `decisions.py`, and whether every rank
*can* do it is voted on at the step boundary.
"""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    TypeAdapter,
    field_validator,
    model_validator,
)

MAX_LEARNING_RATE = 10.0
"""Above this no optimizer trains anything; such a value is a typing error (1e4 for 1e-4)."""

MAX_FACTOR = 1000.0
"""One change may multiply a learning rate by at most this, and divide it by as much."""

MAX_REASON_CHARS = 500
MAX_LABEL_CHARS = 80
MAX_STEP = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""


class Words(BaseModel):
    """Base of every immutable value that crosses a process: unknown keys are refused, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class SetLearningRate(Words):
    """Set the learning rate from the next step on.

    Give `value` (absolute) or `factor` (times the live value of each group). `schedule="keep"` keeps the shape of
    what is left of the schedule, starting from the new value; `"hold"` keeps the new value until the next change.
    `group` is the index or the name of one parameter group; without it every group is set.
    """

    kind: Literal["set_learning_rate"] = "set_learning_rate"
    # Strict: a JSON `true` is not a learning rate of 1.0.
    value: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False, strict=True)
    factor: float | None = Field(default=None, ge=1 / MAX_FACTOR, le=MAX_FACTOR, allow_inf_nan=False, strict=True)
    group: StrictInt | StrictStr | None = None
    schedule: Literal["keep", "hold"] = "keep"

    @model_validator(mode="after")
    def _one_of_value_and_factor(self) -> "SetLearningRate":
        if (self.value is None) == (self.factor is None):
            raise ValueError("give either 'value' (an absolute learning rate) or 'factor', not both and not neither")
        return self

    @field_validator("group")
    @classmethod
    def _a_group_is_an_index_or_a_name(cls, group: int | str | None) -> int | str | None:
        if isinstance(group, int) and group < 0:
            raise ValueError("a parameter group is counted from 0")
        if isinstance(group, str) and not 0 < len(group) <= MAX_LABEL_CHARS:
            raise ValueError(f"a group name has 1 to {MAX_LABEL_CHARS} characters")
        return group


class Pause(Words):
    """Hold every rank at the next step boundary. Commands are still taken while the run is paused."""

    kind: Literal["pause"] = "pause"


class Resume(Words):
    """Let a paused run go on."""

    kind: Literal["resume"] = "resume"


class Stop(Words):
    """End the training at the next step boundary, with a last checkpoint if `save` is set."""

    kind: Literal["stop"] = "stop"
    save: bool = False


class SaveCheckpoint(Words):
    """Save a checkpoint at the next step boundary. With `pin` it is kept until somebody removes it."""

    kind: Literal["save_checkpoint"] = "save_checkpoint"
    label: str | None = Field(default=None, max_length=MAX_LABEL_CHARS)
    pin: bool = False


class Evaluate(Words):
    """Evaluate on the evaluation set at the next step boundary."""

    kind: Literal["evaluate"] = "evaluate"


Intent = Annotated[SetLearningRate | Pause | Resume | Stop | SaveCheckpoint | Evaluate, Field(discriminator="kind")]
INTENT: TypeAdapter[Intent] = TypeAdapter(Intent)


class Command(Words):
    """One request to one run. It is settled at the first step boundary that is not before `not_before_step`."""

    uuid: UUID
    author: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    intent: Intent
    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)
    not_before_step: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)

    @model_validator(mode="after")
    def _a_paused_run_makes_no_steps(self) -> "Command":
        if isinstance(self.intent, Resume) and self.not_before_step is not None:
            raise ValueError("a resume takes no 'not_before_step': a paused run would never reach that step")
        return self

    def describe(self) -> str:
        """The command in a few words, for logs and charts."""
        return describe(self.intent)


def describe(intent: Intent) -> str:
    """An intent in a few words: `lr = 0.0001`, `lr x 0.5 (group 1, hold)`, `pause`."""
    if not isinstance(intent, SetLearningRate):
        return intent.kind.replace("_", " ")
    change = f"= {intent.value:g}" if intent.value is not None else f"x {intent.factor:g}"
    notes = [] if intent.group is None else [f"group {intent.group}"]
    notes += ["hold"] if intent.schedule == "hold" else []
    return f"lr {change}" + (f" ({', '.join(notes)})" if notes else "")
