"""Intents about a run's course: pause, stop, evaluate, checkpoints that ranks save, branches."""

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field, model_validator

from control_plane.core.model.intent_base import BaseIntent, TrainingIntent
from control_plane.core.model.intents.data import SetMixture, WithdrawSamples
from control_plane.core.model.intents.training import (
    Freeze,
    SetKnobs,
    SetLearningRate,
    SetSchedule,
    SkipSamples,
    Unfreeze,
)
from control_plane.core.model.values import MAX_FIRST, MAX_LABEL_CHARS, MAX_NOTE_CHARS, BranchName, Name


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
    SetLearningRate | SetKnobs | SetSchedule | Freeze | Unfreeze | SkipSamples | SetMixture | WithdrawSamples,
    Field(discriminator="kind"),
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
