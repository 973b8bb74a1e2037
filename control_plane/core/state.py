"""One run as the fold of its records.

Possibly the simplest way to think of a steered run is as two machines: each command (accepted, then settled once)
and the run itself (waiting, running, paused, closed). Rule 1: whatever changes either of them is `evolve`. Rule 2:
this file does not know whether it is live, replaying a journal, in a console or inside a simulation.
"""

from dataclasses import dataclass, field
from uuid import UUID

from control_plane.core.commands import Command
from control_plane.core.records import (
    CheckpointCommitted,
    CommandAccepted,
    CommandSettled,
    Entry,
    GenerationEnded,
    GenerationStarted,
    Reading,
    Record,
    RunClosed,
    RunCreated,
    TermStarted,
)


@dataclass(slots=True)
class CommandLife:
    """One command and what became of it."""

    command: Command
    accepted_seq: int
    accepted_at: str
    settled: CommandSettled | None = None
    settled_seq: int | None = None
    settled_at: str | None = None

    @property
    def status(self) -> str:
        """`accepted`, or how it was settled."""
        return self.settled.status if self.settled else "accepted"


@dataclass(slots=True)
class RunState:
    """What a journal says about its run. Only `evolve` changes it."""

    run: str = ""
    name: str = ""
    config_sha256: str = ""
    created_at: str = ""
    # seq is the position of the last record folded in. Invariant: seq == number of records folded.
    seq: int = 0
    term: int = 0
    generation: GenerationStarted | None = None
    # Every start there was, by its uuid: a late repetition of an old announcement must not begin a new generation.
    starts: dict[UUID, int] = field(default_factory=dict)
    ended: GenerationEnded | None = None
    closed: RunClosed | None = None
    paused: bool = False
    stopping: bool = False
    step: int = 0
    knobs: Reading = field(default_factory=dict)
    commands: dict[UUID, CommandLife] = field(default_factory=dict)
    # Invariant: pending holds exactly the uuids of `commands` that are not settled, in the order of acceptance.
    pending: dict[UUID, None] = field(default_factory=dict)
    checkpoints: list[CheckpointCommitted] = field(default_factory=list)

    @property
    def status(self) -> str:
        """`waiting` (no trainers yet), `running`, `paused`, or how the run was closed."""
        if self.closed:
            return self.closed.ending
        if self.generation is None or self.ended is not None:
            return "waiting"
        return "paused" if self.paused else "running"

    @property
    def generation_number(self) -> int:
        """Generations are counted from 1; 0 means that no trainer has started yet."""
        return self.generation.generation if self.generation else 0

    def pending_commands(self) -> tuple[Command, ...]:
        """Accepted and not settled, oldest first."""
        return tuple(self.commands[uuid].command for uuid in self.pending)


def evolve(state: RunState, entry: Entry) -> None:
    """Fold one entry into the state. The only mutation there is.

    Raises `ValueError` if the entry is not the next one: a gap means that records were lost on the way.
    """
    if entry.seq != state.seq + 1:
        raise ValueError(f"record {entry.seq} cannot follow record {state.seq}")
    _fold(state, entry, entry.record)
    state.seq = entry.seq


def _fold(state: RunState, entry: Entry, record: Record) -> None:
    match record:
        case RunCreated():
            state.run, state.name, state.config_sha256 = record.run, record.name, record.config_sha256
            state.created_at = entry.time
        case TermStarted():
            state.term = record.term
        case GenerationStarted():
            state.generation, state.ended, state.step = record, None, record.step
            state.starts[record.uuid] = record.generation
            state.knobs = dict(record.knobs)
            state.paused = state.stopping = False
        case CommandAccepted():
            uuid = record.command.uuid
            state.commands[uuid] = CommandLife(record.command, entry.seq, entry.time)
            state.pending[uuid] = None
        case CommandSettled():
            _settle(state, entry, record)
        case CheckpointCommitted():
            state.checkpoints.append(record)
        case GenerationEnded():
            state.ended, state.step = record, record.step
            state.paused = False
        case RunClosed():
            state.closed, state.paused = record, False


def _settle(state: RunState, entry: Entry, record: CommandSettled) -> None:
    life = state.commands[record.uuid]
    life.settled, life.settled_seq, life.settled_at = record, entry.seq, entry.time
    del state.pending[record.uuid]
    if record.status != "applied":
        return
    state.step = max(state.step, record.step or 0)
    match life.command.intent.kind:
        case "set_learning_rate":
            state.knobs |= record.after or {}
        case "pause":
            state.paused = True
        case "resume":
            state.paused = False
        case "stop":
            state.stopping, state.paused = True, False


def fold(entries: "list[Entry]") -> RunState:
    """The state after these entries, from nothing."""
    state = RunState()
    for entry in entries:
        evolve(state, entry)
    return state
