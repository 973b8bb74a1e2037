"""Intents that the control server carries out itself, without the ranks: about checkpoints, and about alerts."""

from typing import Annotated, Literal

from pydantic import Field

from control_plane.core.model.intent_base import ServerIntent
from control_plane.core.model.values import MAX_NOTE_CHARS, MAX_STEP, BranchName, Name, RunId

AlertSeq = Annotated[int, Field(ge=1, le=MAX_STEP, strict=True)]
"""Number of the journal entry that raised an alert."""


class PinCheckpoint(ServerIntent):
    """Keep a checkpoint whatever the retention says; with `pinned=false`, leave it to the retention again."""

    kind: Literal["pin_checkpoint"] = "pin_checkpoint"
    checkpoint: Name
    pinned: bool = True

    def describe(self) -> str:
        return f"{'pin' if self.pinned else 'unpin'} {self.checkpoint}"


class DeleteCheckpoint(ServerIntent):
    """Remove a checkpoint. One that is pinned, in use, or the newest is refused."""

    kind: Literal["delete_checkpoint"] = "delete_checkpoint"
    checkpoint: Name

    def describe(self) -> str:
        return f"delete {self.checkpoint}"


class AdoptCheckpoint(ServerIntent):
    """Copy a checkpoint of another run (e.g. of a fork) into this run, as the start of a new branch.

    Without `checkpoint`: the one that run would resume from. The branch is named `branch` or by a number. Training
    stays on the current branch; `rollback` with the new branch switches to it.
    """

    kind: Literal["adopt_checkpoint"] = "adopt_checkpoint"
    run: RunId
    checkpoint: Name | None = None
    branch: BranchName | None = None

    def describe(self) -> str:
        named = f" as {self.branch}" if self.branch else ""
        return f"adopt {self.checkpoint or 'the newest checkpoint'} of {self.run}{named}"


class AcknowledgeAlert(ServerIntent):
    """Mark an alert as seen: it leaves the inbox, stays in the log, and no further message is sent about it."""

    kind: Literal["acknowledge_alert"] = "acknowledge_alert"
    alert: AlertSeq
    note: str | None = Field(default=None, max_length=MAX_NOTE_CHARS)

    def describe(self) -> str:
        return f"acknowledge alert {self.alert}"


class SnoozeAlert(ServerIntent):
    """Keep an alert, and later ones of the same kind and subject, out of the inbox until after step `until_step`.

    Without `until_step`: until it has cleared. Alerts are recorded meanwhile, and reflexes answer them.
    """

    kind: Literal["snooze_alert"] = "snooze_alert"
    alert: AlertSeq
    until_step: Annotated[int, Field(ge=0, le=MAX_STEP, strict=True)] | None = None

    def describe(self) -> str:
        until = "it has cleared" if self.until_step is None else f"step {self.until_step}"
        return f"snooze alert {self.alert} until {until}"
