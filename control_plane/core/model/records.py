"""What the journal may hold: facts, in the past tense.

A record is written once, durably, before anyone sees it. Measurements (losses, speeds) are not facts of this kind:
they live in the metrics store and may be lost.
"""

from math import isfinite, isnan
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, TypeAdapter

from control_plane.core.model.checkpoint_records import (
    MAIN,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    StateDigested,
)
from control_plane.core.model.commands import Command, Words
from control_plane.core.model.intents import BranchName, CheckpointName
from control_plane.core.model.limits import Limit


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _spelled(inner) for key, inner in value.items()}
    return [_spelled(inner) for inner in value] if isinstance(value, list | tuple) else value


Reading = Annotated[dict[str, Any], AfterValidator(_spelled)]
"""What one rank read back from its live objects, as plain JSON values, e.g. `{"lr": [1e-4, 1e-4]}`.

JSON has no NaN and no infinity: in a record they are spelled "NaN", "Infinity" and "-Infinity"."""

SKIPPED_STEPS, STEP_WAS_SKIPPED = "skipped_steps", "step_was_skipped"
"""In the reading of an applied command: how many steps the optimizer has not taken because gradients were not finite,
and that the step before this boundary was one of them. Left out where there is nothing to tell."""

NOT_EXACT = "not_exact"
"""Among a generation's facts: in words, what is not after a failure what it would have been without one."""

Status = Literal["applied", "rejected", "failed", "expired", "cancelled"]
Ending = Literal["finished", "stopped", "failed"]
GenerationEnding = Ending | Literal["left"]
"""`left`: the same processes go on elsewhere, with another branch."""

UNIVERSAL = "-universal"
"""Added to a checkpoint's name: the same for another number of ranks."""

MAX_RANKS_LISTED = 8
"""Readings are journalled rank by rank up to this world size; beyond it, agreement makes one reading enough."""


class RankPlace(Words):
    """Where one rank runs. `device` is `cpu` or e.g. `cuda:0`."""

    rank: int
    node: str
    pid: int
    device: str


class Parent(Words):
    """Where a run comes from that did not begin at nothing.

    A `fork` begins at a checkpoint of another run, of which it has a copy under its own name. A `replay` begins at the
    beginning and does again what that run did, up to step `step` of its last branch. A branch of a run begins so, too,
    if it was `adopted` from another run.
    """

    kind: Literal["fork", "replay", "adopted"]
    run: str
    branch: str = MAIN
    checkpoint: CheckpointName | None = None
    step: int = 0


class RunCreated(Words):
    """A run got its journal. `config_sha256` is the digest of the resolved configuration."""

    type: Literal["RunCreated"] = "RunCreated"
    run: str
    name: str
    author: str
    config_sha256: str
    model: str = ""
    limits: dict[str, Limit] = {}
    parent: Parent | None = None


class TermStarted(Words):
    """A control server began its life. `recovered` counts the records it found."""

    type: Literal["TermStarted"] = "TermStarted"
    term: int
    recovered: int


class RefusedCheckpoint(Words):
    """A checkpoint that did not verify when the trainers wanted to start from it."""

    checkpoint: CheckpointName
    reason: str


class GenerationStarted(Words):
    """The trainers began, from `step`, with these ranks and knobs. `uuid` makes announcing it twice harmless.

    `checkpoint` is what they restored; without one they began at the beginning. `refused` did not verify.
    `branch` is the one that they train. `training` is which of the script's trainings this is, by the order of its
    calls of `train()`, from 1; `training_sha256` is of its model's shapes and of samples of its data.
    """

    type: Literal["GenerationStarted"] = "GenerationStarted"
    uuid: UUID
    generation: int
    ranks: tuple[RankPlace, ...]
    step: int
    total_steps: int
    knobs: Reading
    facts: Reading = {}
    checkpoint: CheckpointName | None = None
    refused: tuple[RefusedCheckpoint, ...] = ()
    retention: Reading = Field(default={}, description="a `core.retention.Retention`; empty: every checkpoint is kept")
    branch: str = MAIN
    training: int = 1
    training_sha256: str = ""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


class CommandAccepted(Words):
    """The command is durable. It will be settled exactly once."""

    type: Literal["CommandAccepted"] = "CommandAccepted"
    command: Command


class CommandScheduled(Words):
    """An accepted command takes effect at the boundary after `step`, before any other: a branch begins with it, or the
    run that is replayed did it there."""

    type: Literal["CommandScheduled"] = "CommandScheduled"
    uuid: UUID
    status: Literal["scheduled"] = "scheduled"
    step: int
    training: int = 1


class BranchStarted(Words):
    """The run goes on from `checkpoint`, as a new branch of that name. `rollback` is the command that asked for it."""

    type: Literal["BranchStarted"] = "BranchStarted"
    branch: BranchName
    parent: str
    checkpoint: CheckpointName
    step: int
    rollback: UUID


class BranchResumed(Words):
    """The run goes on with a branch that there was already."""

    type: Literal["BranchResumed"] = "BranchResumed"
    branch: BranchName
    rollback: UUID


class BranchAdopted(Words):
    """A branch begins at a checkpoint of another run, of which this one has a copy. The run is not taken to it."""

    type: Literal["BranchAdopted"] = "BranchAdopted"
    branch: BranchName
    origin: Parent


class CommandSettled(Words):
    """The end of a command's life.

    `applied` means: after step `step`, every one of `world_size` ranks read `after` back from its live objects.
    `before` is what the ranks read first. `ranks` lists each rank's own reading (up to `MAX_RANKS_LISTED` ranks).
    """

    type: Literal["CommandSettled"] = "CommandSettled"
    uuid: UUID
    status: Status
    step: int | None = None
    generation: int | None = None
    reason: str | None = None
    before: Reading | None = None
    after: Reading | None = None
    world_size: int = 0
    ranks: tuple[Reading, ...] = ()


class CommandRepeated(Words):
    """A command that was applied before a failure was applied again, at the step where it first took effect.

    `status` and `after` must be what they were; a difference is recorded and not hidden.
    """

    type: Literal["CommandRepeated"] = "CommandRepeated"
    uuid: UUID
    generation: int
    step: int
    status: Status
    after: Reading | None = None
    reason: str | None = None


class Death(Words):
    """One rank that was lost, as the driver saw it. `rank` is None if it was lost before it had one.

    `signature` says the same of the same failure: the exception and where it was raised, the signal, out of memory, or
    what the watchdog found in which phase. `step` is the last one that this rank had made, if it could still tell.
    """

    rank: int | None
    node: str = ""
    reason: str
    signature: str = ""
    step: int | None = None


class GenerationLost(Words):
    """Trainers died or hung. `step` is the last that was heard of; what came after the checkpoint is undone."""

    type: Literal["GenerationLost"] = "GenerationLost"
    loss: UUID | None = None
    generation: int
    step: int
    silent_s: float = Field(default=0.0, description="from the last sign of life of rank 0 to the discovery")
    deaths: tuple[Death, ...] = ()

    @property
    def is_inferred(self) -> bool:
        """Nobody told of it: new trainers came."""
        return self.loss is None and not self.deaths


class GenerationRecovered(Words):
    """The first step after a loss. Each phase in seconds: see `core.recovery.PHASES`."""

    type: Literal["GenerationRecovered"] = "GenerationRecovered"
    generation: int
    step: int
    lost_steps: int
    phases_s: dict[str, float] = {}


class GenerationEnded(Words):
    """The trainers ended at `step`."""

    type: Literal["GenerationEnded"] = "GenerationEnded"
    generation: int
    ending: GenerationEnding
    step: int
    reason: str | None = None


class RunClosed(Words):
    """The run is over; it takes no more commands."""

    type: Literal["RunClosed"] = "RunClosed"
    ending: Ending
    reason: str | None = None


class RunResumed(Words):
    """Somebody had the run go on, with a new driver and perhaps on a new cluster. A stop is not repeated."""

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
    | GenerationLost
    | GenerationRecovered
    | GenerationEnded
    | RunClosed
    | RunResumed,
    Field(discriminator="type"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


ABOUT_A_COMMAND = (CommandScheduled, CommandSettled, CommandRepeated)
"""Records that say more of a command that was accepted earlier: each has its `uuid` and a `status`."""


class About(Words):
    """What a command asks, for whoever reads a single line: the intent's kind, and all else that it says.

    What the intent leaves open is left out.
    """

    command: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, command: Command) -> "About":
        """What this command asks."""
        said = command.intent.model_dump(mode="json", exclude={"kind"})
        return cls(
            command=command.intent.kind, arguments={key: value for key, value in said.items() if value is not None}
        )


class Entry(Words):
    """A record in its place: `seq` counts from 1 without gaps; `time` is UTC, ISO 8601, for people only.

    `about` is set where the record says more of an earlier command; an accepted one says it itself.
    """

    seq: int = Field(ge=1)
    time: str
    record: Record
    about: About | None = None

    def line(self) -> dict[str, Any]:
        """The journal's line, without the checksum and the chain that the storage adds."""
        body = self.record.model_dump(mode="json", exclude={"type"})
        line: dict[str, Any] = {"seq": self.seq, "time": self.time, "type": self.record.type}
        about = self.about
        if isinstance(self.record, CommandAccepted):
            about = About.of(self.record.command)
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
        """The inverse of `line`. Raises `pydantic.ValidationError` if the line is not one of ours."""
        body = line.get("body")
        record = {**body, "type": line.get("type")} if isinstance(body, dict) else body
        entry = cls.model_validate({"seq": line.get("seq"), "time": line.get("time"), "record": record})
        command, arguments = line.get("command"), line.get("arguments")
        # What stands beside the body is for people: a line without it, as earlier releases wrote them, is complete.
        if not isinstance(entry.record, ABOUT_A_COMMAND) or not isinstance(command, str):
            return entry
        if not isinstance(arguments, dict):
            return entry
        return entry.model_copy(update={"about": About(command=command, arguments=arguments)})


class Asked:
    """What each command asks, learnt from the entries in their order: later ones about it say it again."""

    def __init__(self) -> None:
        """Knows nothing."""
        self._known = dict[UUID, About]()

    def complete(self, entry: Entry) -> Entry:
        """The entry, and what its command asks, if that is known."""
        record = entry.record
        if isinstance(record, CommandAccepted):
            self._known[record.command.uuid] = About.of(record.command)
        elif isinstance(record, ABOUT_A_COMMAND) and entry.about is None and record.uuid in self._known:
            return entry.model_copy(update={"about": self._known[record.uuid]})
        return entry
