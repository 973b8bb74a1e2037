"""Journal records: facts, in the past tense.

A record is written once, durably, before anyone sees it. Measurements (losses, speeds) are not records: they are kept
in the metrics store and may be lost.
"""

from math import isfinite, isnan
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, TypeAdapter

from control_plane.core.model.checkpoint_records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    StateDigested,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.health import AlertCleared, AlertRaised
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.model.limits import Limit
from control_plane.core.model.proposals import ProposalClosed, TrialStarted
from control_plane.core.model.reflexes import Reflexes
from control_plane.core.model.values import MAIN, BranchName, CheckpointName, LeftOut


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _spelled(inner) for key, inner in value.items()}
    return [_spelled(inner) for inner in value] if isinstance(value, list | tuple) else value


Readback = Annotated[dict[str, Any], AfterValidator(_spelled)]
"""Readback of one rank's live objects, as plain JSON values, e.g. `{"lr": [1e-4, 1e-4]}`.

JSON has no NaN and no infinity: a record spells them "NaN", "Infinity" and "-Infinity"."""

SKIPPED_STEPS, STEP_WAS_SKIPPED = "skipped_steps", "step_was_skipped"
"""In the readback of an applied command: how many steps the optimizer has skipped because gradients were not finite,
and that the step before this boundary was one of them. Absent if there are none."""

NOT_EXACT = "not_exact"
"""Among a generation's facts: reasons why a recovery of this training is not bit-identical, as sentences."""

NOBODY = "steerway"
"""Author of the creation of a run that has no submission record, as in earlier releases."""

SHARED_NODES = "shared_nodes"
"""Among a generation's facts, for a run that asked for a spread: which ranks share a node nevertheless."""

Status = Literal["applied", "rejected", "failed", "expired", "cancelled"]
Ending = Literal["finished", "stopped", "failed"]
GenerationEnding = Ending | Literal["left"]
"""`left`: the same processes continue on another branch."""

UNIVERSAL = "-universal"
"""Suffix of a checkpoint's name: the same checkpoint, converted for another number of ranks."""

MAX_RANKS_LISTED = 8
"""Readbacks are recorded rank by rank up to this world size; beyond it one is enough, as all ranks agree."""


class RankPlace(Message):
    """Placement of one rank: node, process and device (`cpu` or e.g. `cuda:0`)."""

    rank: int
    node: str
    pid: int
    device: str


class Parent(Message):
    """Origin of a run, or of an adopted branch, in another run.

    A `fork` starts at a checkpoint of that run, of which it has a copy. A `replay` starts at step 0 and repeats that
    run's commands up to step `step` of its last branch, but for `without`. An `adopted` branch has a copied checkpoint.
    """

    kind: Literal["fork", "replay", "adopted"]
    run: str
    branch: str = MAIN
    checkpoint: CheckpointName | None = None
    step: int = 0
    without: LeftOut | None = None


class RunCreated(Message):
    """A run was created. `config_sha256` is the digest of the resolved configuration."""

    type: Literal["RunCreated"] = "RunCreated"
    run: str
    name: str
    author: str
    config_sha256: str
    model: str = ""
    limits: dict[str, Limit] = {}
    parent: Parent | None = None
    reflexes: Reflexes = {}
    agent: AgentSettings | None = None


class TermStarted(Message):
    """A control server began a term. `recovered` counts the records it found in the journal."""

    type: Literal["TermStarted"] = "TermStarted"
    term: int
    recovered: int


class RefusedCheckpoint(Message):
    """A checkpoint that did not verify when the trainers wanted to start from it."""

    checkpoint: CheckpointName
    reason: str


class GenerationStarted(Message):
    """A generation of trainers started from `step`, with these ranks and knobs. Idempotent by `uuid`.

    `checkpoint` was restored; without one they started at step 0. `refused` did not verify. `training` numbers the
    script's calls of `train()`, from 1; `training_sha256` is a digest of its model's shapes and of samples of its data.
    """

    type: Literal["GenerationStarted"] = "GenerationStarted"
    uuid: UUID
    generation: int
    ranks: tuple[RankPlace, ...]
    step: int
    total_steps: int
    knobs: Readback
    facts: Readback = {}
    checkpoint: CheckpointName | None = None
    refused: tuple[RefusedCheckpoint, ...] = ()
    retention: Readback = Field(default={}, description="a `core.retention.Retention`; empty: every checkpoint is kept")
    branch: str = MAIN
    training: int = 1
    training_sha256: str = ""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


class CommandAccepted(Message):
    """A command was accepted and is durable. It will be settled exactly once."""

    type: Literal["CommandAccepted"] = "CommandAccepted"
    command: Command


class CommandScheduled(Message):
    """An accepted command was scheduled for the boundary after `step`, before any other: an initial change of a branch,
    or a command of the replayed run."""

    type: Literal["CommandScheduled"] = "CommandScheduled"
    uuid: UUID
    status: Literal["scheduled"] = "scheduled"
    step: int
    training: int = 1


class BranchStarted(Message):
    """The run continues from `checkpoint` on a new branch. `rollback` is the command that requested it."""

    type: Literal["BranchStarted"] = "BranchStarted"
    branch: BranchName
    parent: str
    checkpoint: CheckpointName
    step: int
    rollback: UUID


class BranchResumed(Message):
    """The run was switched to an existing branch."""

    type: Literal["BranchResumed"] = "BranchResumed"
    branch: BranchName
    rollback: UUID


class BranchAdopted(Message):
    """A branch was created at a copied checkpoint of another run. The run is not switched to it."""

    type: Literal["BranchAdopted"] = "BranchAdopted"
    branch: BranchName
    origin: Parent


class CommandSettled(Message):
    """The final status of a command.

    `applied` means: after step `step`, all `world_size` ranks read `after` back from their live objects; `before` is
    the readback before the change. `ranks` lists each rank's own readback (up to `MAX_RANKS_LISTED` ranks).
    """

    type: Literal["CommandSettled"] = "CommandSettled"
    uuid: UUID
    status: Status
    step: int | None = None
    generation: int | None = None
    reason: str | None = None
    before: Readback | None = None
    after: Readback | None = None
    world_size: int = 0
    ranks: tuple[Readback, ...] = ()


class CommandRepeated(Message):
    """A command was applied again after a failure, at the step where it first took effect.

    `status` and `after` must be what they were; a difference is recorded, not hidden.
    """

    type: Literal["CommandRepeated"] = "CommandRepeated"
    uuid: UUID
    generation: int
    step: int
    status: Status
    after: Readback | None = None
    reason: str | None = None


class Death(Message):
    """Failure of one rank, as the driver saw it. `rank` is None if it failed before it had a rank.

    `signature` is equal for equal failures: the exception and where it was raised, the signal, out of memory, or what
    the watchdog found in which phase. `step` is this rank's last completed step, if known.
    """

    rank: int | None
    node: str = ""
    reason: str
    signature: str = ""
    step: int | None = None


class GenerationLost(Message):
    """A generation failed: trainers died or hung. `step` is the last reported; steps after the checkpoint are undone.

    `loss` is the uuid of the driver's report.
    """

    type: Literal["GenerationLost"] = "GenerationLost"
    loss: UUID | None = None
    generation: int
    step: int
    silent_s: float = Field(default=0.0, description="from the last sign of life of rank 0 to the discovery")
    deaths: tuple[Death, ...] = ()

    @property
    def is_inferred(self) -> bool:
        """True if nobody reported the failure: it was inferred when new trainers asked where to start."""
        return self.loss is None and not self.deaths


class GenerationRecovered(Message):
    """The first step after a failure was made. Seconds of each phase: see `core.recovery.PHASES`."""

    type: Literal["GenerationRecovered"] = "GenerationRecovered"
    generation: int
    step: int
    lost_steps: int
    phases_s: dict[str, float] = {}


class GenerationEnded(Message):
    """A generation of trainers ended at `step`."""

    type: Literal["GenerationEnded"] = "GenerationEnded"
    generation: int
    ending: GenerationEnding
    step: int
    reason: str | None = None


class RunClosed(Message):
    """The run was closed; it takes no more commands."""

    type: Literal["RunClosed"] = "RunClosed"
    ending: Ending
    reason: str | None = None


class RunResumed(Message):
    """The run was resumed, with a new driver and perhaps on a new cluster. An earlier stop is not repeated."""

    type: Literal["RunResumed"] = "RunResumed"
    author: str


Record = Annotated[
    RunCreated
    | TermStarted
    | GenerationStarted
    | CommandAccepted
    | CommandScheduled
    | CommandSettled
    | CommandRepeated
    | BranchStarted
    | BranchResumed
    | BranchAdopted
    | CheckpointCommitted
    | CheckpointPinned
    | CheckpointFailed
    | CheckpointDiscarded
    | StateDigested
    | AlertRaised
    | AlertCleared
    | TrialStarted
    | ProposalClosed
    | GenerationLost
    | GenerationRecovered
    | GenerationEnded
    | RunClosed
    | RunResumed,
    Field(discriminator="type"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


ABOUT_A_COMMAND = (CommandScheduled, CommandSettled, CommandRepeated)
"""Records about a command accepted earlier: each has its `uuid` and a `status`."""


class CommandSummary(Message):
    """Summary of a command for readers of a single journal line: the intent's kind and its other fields.

    Fields that are None are left out.
    """

    command: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, command: Command) -> "CommandSummary":
        """Return the summary of a command."""
        fields = command.intent.model_dump(mode="json", exclude={"kind"})
        return cls(
            command=command.intent.kind, arguments={key: value for key, value in fields.items() if value is not None}
        )


class Entry(Message):
    """A journal entry: `seq` counts from 1 without gaps; `time` is UTC, ISO 8601, for people only.

    `about` is set on records about an earlier command, see `ABOUT_A_COMMAND`.
    """

    seq: int = Field(ge=1)
    time: str
    record: Record
    about: CommandSummary | None = None

    def line(self) -> dict[str, Any]:
        """Return the journal line as a JSON object, without the checksum and the hash chain that the storage adds."""
        body = self.record.model_dump(mode="json", exclude={"type"})
        line: dict[str, Any] = {"seq": self.seq, "time": self.time, "type": self.record.type}
        about = self.about
        if isinstance(self.record, CommandAccepted):
            about = CommandSummary.of(self.record.command)
            line |= {"uuid": str(self.record.command.uuid), "status": "accepted"}
        elif isinstance(self.record, ABOUT_A_COMMAND):
            line |= {"uuid": str(self.record.uuid), "status": self.record.status}
        if about is not None:
            line |= {"command": about.command, "arguments": about.arguments}
        if isinstance(self.record, CommandAccepted):
            line |= {"author": self.record.command.author}
        elif isinstance(self.record, RunCreated | RunResumed):
            line |= {"author": self.record.author}
        return line | {"body": body}

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> "Entry":
        """Parse a journal line, the inverse of `line`. Raises `pydantic.ValidationError`."""
        body = line.get("body")
        record = {**body, "type": line.get("type")} if isinstance(body, dict) else body
        entry = cls.model_validate({"seq": line.get("seq"), "time": line.get("time"), "record": record})
        command, arguments = line.get("command"), line.get("arguments")
        # The fields beside the body are for people: a line of an earlier release without them is complete.
        if not (isinstance(entry.record, ABOUT_A_COMMAND) and isinstance(command, str) and isinstance(arguments, dict)):
            return entry
        return entry.model_copy(update={"about": CommandSummary(command=command, arguments=arguments)})
