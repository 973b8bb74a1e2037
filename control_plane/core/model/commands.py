"""Commands: requests of a person or an agent to a running job.

A `Command` is immutable and idempotent: it carries a uuid chosen by its sender, an author, a reason, and an intent,
the typed body (see `intents`). Everything is validated on construction, so a command that exists is well-formed.
"""

from uuid import UUID

from pydantic import Field, model_validator

from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents import (
    INTENT,
    Evaluate,
    Intent,
    Pause,
    Resume,
    SaveCheckpoint,
    SetKnobs,
    SetLearningRate,
    Stop,
)
from control_plane.core.model.values import MAX_FACTOR, MAX_LABEL_CHARS, MAX_LEARNING_RATE, MAX_STEP, Change

__all__ = [
    "INTENT",
    "MAX_FACTOR",
    "MAX_LABEL_CHARS",
    "MAX_LEARNING_RATE",
    "Change",
    "Command",
    "Evaluate",
    "Intent",
    "Message",
    "Pause",
    "Resume",
    "SaveCheckpoint",
    "SetKnobs",
    "SetLearningRate",
    "Stop",
]

MAX_REASON_CHARS = 500


class Command(Message):
    """One request to one run.

    It is settled at the first step boundary at or after `not_before_step`, and expires after `not_after_step`. With
    `based_on_seq` it is rejected if the run has changed since that journal entry. `role`: the author's role when the
    command was received.
    """

    uuid: UUID
    author: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    intent: Intent
    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)
    not_before_step: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)
    not_after_step: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)
    based_on_seq: int | None = Field(default=None, ge=0, le=MAX_STEP, strict=True)
    role: str | None = Field(default=None, max_length=MAX_LABEL_CHARS)

    @model_validator(mode="after")
    def _a_paused_run_makes_no_steps(self) -> "Command":
        if isinstance(self.intent, Resume) and self.not_before_step is not None:
            raise ValueError("a resume takes no 'not_before_step': a paused run would never reach that step")
        return self

    @model_validator(mode="after")
    def _there_is_a_step_for_it(self) -> "Command":
        if self.not_after_step is not None and self.not_after_step < (self.not_before_step or 0):
            raise ValueError(
                f"'not_after_step' is {self.not_after_step}, which is before 'not_before_step' {self.not_before_step}"
            )
        return self

    def describe(self) -> str:
        """Return a short description for logs and charts, e.g. `lr = 0.0001`."""
        return self.intent.describe()

    def takes_back(self) -> str:
        """Return the reason recorded for the command that this cancel takes back."""
        return f"cancelled by {self.author}" + (f": {self.reason}" if self.reason else "")
