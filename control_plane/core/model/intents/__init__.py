"""Intents: the typed bodies of commands, validated on construction, with their bounds.

    a run's course     Pause, Resume, Stop, Evaluate
    its knobs          SetLearningRate, SetSchedule, SetKnobs
    its parameters     Freeze, Unfreeze, ResetParameters
    its data           SkipSamples
    its sources        SetMixture, AddSource, RemoveSource, SplitSource, AddShards, WithdrawSamples
    its own actions    RunAction
    checkpoints        SaveCheckpoint, PinCheckpoint, DeleteCheckpoint
    its branches       Rollback, AdoptCheckpoint
    its alerts         AcknowledgeAlert, SnoozeAlert
    its agent          StartAgent, StopAgent, Propose, WithdrawProposal, AnswerProposal, NoteEffect
    other commands     Cancel

`decisions` decides whether an intent *may* happen; the ranks vote at the step boundary whether they *can* do it.
Intents of `server` and `agent` need no ranks: the control server does them itself.
"""

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field, TypeAdapter

from control_plane.core.model.intent_base import BaseIntent
from control_plane.core.model.intents.agent import (
    AnswerProposal,
    NoteEffect,
    Propose,
    StartAgent,
    StopAgent,
    WithdrawProposal,
)
from control_plane.core.model.intents.course import (
    Cancel,
    Evaluate,
    First,
    Pause,
    Resume,
    Rollback,
    SaveCheckpoint,
    Stop,
)
from control_plane.core.model.intents.data import (
    AddShards,
    AddSource,
    RemoveSource,
    SetMixture,
    SplitSource,
    WithdrawSamples,
)
from control_plane.core.model.intents.server import (
    AcknowledgeAlert,
    AdoptCheckpoint,
    DeleteCheckpoint,
    PinCheckpoint,
    SnoozeAlert,
)
from control_plane.core.model.intents.training import (
    Freeze,
    ResetParameters,
    RunAction,
    SetKnobs,
    SetLearningRate,
    SetSchedule,
    SkipSamples,
    Unfreeze,
)

__all__ = [
    "INTENT",
    "KINDS",
    "AcknowledgeAlert",
    "AddShards",
    "AddSource",
    "AdoptCheckpoint",
    "AnswerProposal",
    "Cancel",
    "DeleteCheckpoint",
    "Evaluate",
    "First",
    "Freeze",
    "Intent",
    "NoteEffect",
    "Pause",
    "PinCheckpoint",
    "Propose",
    "RemoveSource",
    "ResetParameters",
    "Resume",
    "Rollback",
    "RunAction",
    "SaveCheckpoint",
    "SetKnobs",
    "SetLearningRate",
    "SetMixture",
    "SetSchedule",
    "SkipSamples",
    "SnoozeAlert",
    "SplitSource",
    "StartAgent",
    "Stop",
    "StopAgent",
    "Unfreeze",
    "WithdrawProposal",
    "WithdrawSamples",
]

Intent = Annotated[
    SetLearningRate
    | SetKnobs
    | SetSchedule
    | Freeze
    | Unfreeze
    | ResetParameters
    | SkipSamples
    | SetMixture
    | AddSource
    | RemoveSource
    | SplitSource
    | AddShards
    | WithdrawSamples
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
    | StartAgent
    | StopAgent
    | Propose
    | WithdrawProposal
    | AnswerProposal
    | NoteEffect
    | Cancel,
    Field(discriminator="kind"),
]
INTENT: TypeAdapter[Intent] = TypeAdapter(Intent)

KINDS: Mapping[str, type[BaseIntent]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Intent)[0])
}
"""Every intent kind by its name."""
