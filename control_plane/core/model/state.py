"""State of one run: the fold of its journal records.

A steered run is two state machines: each command (accepted, then settled once) and the run itself (waiting, running,
paused, closed). Rule 1: only `evolve` changes either of them. Rule 2: this module does not know whether it is live,
replaying a journal, in a console or inside a simulation.
"""

from dataclasses import dataclass, field, replace
from uuid import UUID

from control_plane.core.model.branch_tree import Branch, BranchState, CheckpointState, distrust
from control_plane.core.model.commands import Command
from control_plane.core.model.data import DataState
from control_plane.core.model.health import AlertCleared, AlertRaised, AlertState
from control_plane.core.model.intents import Pause, Resume, Stop
from control_plane.core.model.intents.agent import NoteEffect, Propose, StartAgent, StopAgent
from control_plane.core.model.intents.data import DataIntent
from control_plane.core.model.intents.server import AcknowledgeAlert, SnoozeAlert
from control_plane.core.model.limits import Limit
from control_plane.core.model.proposals import AgentState, ProposalClosed, TrialStarted
from control_plane.core.model.records import (
    MAIN,
    NOBODY,
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationEnded,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    Parent,
    Readback,
    Record,
    RunClosed,
    RunCreated,
    RunResumed,
    StateDigested,
    TermStarted,
)
from control_plane.core.model.reflexes import Reflexes


@dataclass(slots=True)
class CommandStatus:
    """One accepted command and its outcome."""

    command: Command
    accepted_seq: int
    accepted_at: str
    settled: CommandSettled | None = None
    settled_seq: int | None = None
    settled_at: str | None = None
    repeated: CommandRepeated | None = None
    # The branch on which it was settled; until then, on which it was accepted. The same for the training.
    branch: str = MAIN
    training: int = 1

    @property
    def status(self) -> str:
        """`accepted`, or the status it was settled with."""
        return self.settled.status if self.settled else "accepted"


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """One failure of the trainers, and the recovery from it; `recovered` is None while that is not over.

    `began` is the start of the failed generation; None if it failed before its first step.
    """

    record: GenerationLost
    failed_at: str
    began: GenerationStarted | None = None
    restarted: GenerationStarted | None = None
    recovered: GenerationRecovered | None = None


@dataclass(slots=True)
class RunState:
    """State of one run, as its journal has it. Only `evolve` changes it."""

    run: str = ""
    name: str = ""
    config_sha256: str = ""
    created_at: str = ""
    owner: str | None = None
    # seq is the position of the last record folded in. Invariant: seq == number of records folded.
    seq: int = 0
    term: int = 0
    generation: GenerationStarted | None = None
    # Every start by its uuid: a late repetition of an old announcement must not begin a new generation.
    starts: dict[UUID, int] = field(default_factory=dict)
    ended: GenerationEnded | None = None
    closed: RunClosed | None = None
    paused: bool = False
    stopping: bool = False
    step: int = 0
    knobs: Readback = field(default_factory=dict)
    commands: dict[UUID, CommandStatus] = field(default_factory=dict)
    # Invariant: pending holds exactly the uuids of `commands` that are not settled, in the order of acceptance.
    pending: dict[UUID, None] = field(default_factory=dict)
    checkpoints: CheckpointState = field(default_factory=CheckpointState)
    tree: BranchState = field(default_factory=BranchState)
    reflexes: Reflexes = field(default_factory=dict)
    alerts: AlertState = field(default_factory=AlertState)
    agent: AgentState = field(default_factory=AgentState)
    data: DataState = field(default_factory=DataState)
    failures: list[GenerationFailure] = field(default_factory=list)
    # Of the current generation, by step, so that recording is idempotent.
    digested: dict[int, StateDigested] = field(default_factory=dict)
    # The highest step in the journal, of any generation.
    reached_step: int = 0
    started_seq: int = 0
    # Stops up to this record have no effect any more: the run was resumed after them.
    resumed_seq: int = 0
    # Failures before that do not count in the crash loop: a person has resumed the run since.
    failures_before_resume: int = 0
    limits: dict[str, Limit] = field(default_factory=dict)
    # The entry that last changed each knob.
    changed_seq: dict[str, int] = field(default_factory=dict)
    # The last entry that changed the run's course, or announced it, and its description.
    course_seq: int = 0
    course: str = "its beginning"
    parent: Parent | None = None
    # The training of the script, see `trainings`, of each generation.
    training_of_generation: dict[int, int] = field(default_factory=dict)
    # Fingerprints of model and data of the trainings that have begun, by number.
    trainings: dict[int, str] = field(default_factory=dict)
    # Trainings that finished, with the branch.
    finished_trainings: set[tuple[str, int]] = field(default_factory=set)
    # Commands scheduled for a known step, before any other.
    scheduled: dict[UUID, int] = field(default_factory=dict)

    @property
    def switching(self) -> bool:
        """True if the run is being taken to another branch."""
        return self.tree.branched_seq > self.started_seq

    @property
    def has_failed(self) -> bool:
        """True if the current generation has failed and no other has begun."""
        return bool(self.failures) and self.failures[-1].restarted is None

    @property
    def listens(self) -> bool:
        """True if the current generation may still report: no successor has read the history without it."""
        return not self.has_failed and not self.is_resumed

    @property
    def is_resumed(self) -> bool:
        """True if the run was resumed and its new trainers have not begun yet."""
        return self.resumed_seq > self.started_seq

    @property
    def status(self) -> str:
        """`waiting` (no trainers yet), `running`, `paused`, `recovering`, or how the run was closed."""
        if self.closed:
            return self.closed.ending
        if self.generation is None or (self.is_resumed and not self.switching):
            return "waiting"
        if self.switching and (self.is_resumed or not self.has_failed):
            return "switching"
        if self.has_failed or self.ended is not None:
            return "recovering" if self.has_failed or (self.ended and self.ended.ending == "failed") else "waiting"
        return "paused" if self.paused else "running"

    @property
    def generation_number(self) -> int:
        """Generations are counted from 1; 0 means that no trainer has started yet."""
        return self.generation.generation if self.generation else 0

    def pending_commands(self) -> tuple[Command, ...]:
        """Return accepted commands that are neither settled nor scheduled, oldest first."""
        return tuple(self.commands[uuid].command for uuid in self.pending if uuid not in self.scheduled)


def evolve(state: RunState, entry: Entry) -> None:
    """Fold one entry into the state: the only mutation of a `RunState`.

    Raises `ValueError` if the entry is not the next one: a gap means lost records.
    """
    if entry.seq != state.seq + 1:
        raise ValueError(f"record {entry.seq} cannot follow record {state.seq}")
    _fold(state, entry, entry.record)
    state.seq = entry.seq


def _fold(state: RunState, entry: Entry, record: Record) -> None:
    match record:
        case RunCreated():
            _create(state, entry, record)
        case TermStarted():
            state.term = record.term
        case GenerationStarted():
            _start_generation(state, entry, record)
        case CommandAccepted():
            uuid = record.command.uuid
            training = state.generation.training if state.generation else 1
            life = CommandStatus(record.command, entry.seq, entry.time, branch=state.tree.head, training=training)
            state.commands[uuid] = life
            state.pending[uuid] = None
            if record.command.intent.changes_course:
                state.course_seq, state.course = entry.seq, f"{record.command.author}: {record.command.describe()}"
        case CommandScheduled():
            state.scheduled[record.uuid] = record.step
            if record.uuid in state.commands:
                state.commands[record.uuid].training = record.training
        case CommandSettled():
            _settle(state, entry, record)
        case BranchStarted() | BranchResumed():
            _take_branch(state, entry, record)
        case BranchAdopted():
            state.tree.branches[record.branch] = Branch(
                record.branch, step=record.origin.step, began_seq=entry.seq, origin=record.origin
            )
            _reach(state, record.origin.step, record.branch)
        case CommandRepeated():
            life = state.commands[record.uuid]
            life.repeated = record
            _take_effect(state, entry, life.command, record)
        case CheckpointCommitted():
            state.checkpoints.existing.append(record)
            state.checkpoints.committed_seq[record.checkpoint] = entry.seq
            _reach(state, record.step, record.branch)
        case CheckpointDiscarded():
            state.checkpoints.existing = [
                each for each in state.checkpoints.existing if each.checkpoint != record.checkpoint
            ]
            state.checkpoints.discarded.add(record.checkpoint)
        case CheckpointPinned():
            state.checkpoints.existing = [
                each.model_copy(update={"pinned": record.pinned}) if each.checkpoint == record.checkpoint else each
                for each in state.checkpoints.existing
            ]
        case CheckpointFailed():
            pass  # for people: what was never committed was never there
        case StateDigested():
            state.digested[record.step] = record
            state.step = max(state.step, record.step)
            state.reached_step = max(state.reached_step, record.step)
        case AlertRaised() | AlertCleared():
            _take_alert(state, entry, record)
        case TrialStarted() | ProposalClosed():
            state.agent.note(entry.seq, entry.time, record)
        case GenerationLost():
            _lose(state, entry, record)
            _reach(state, record.step, state.tree.of_generation.get(record.generation, state.tree.head))
        case GenerationRecovered():
            state.failures[-1] = replace(state.failures[-1], recovered=record)
        case GenerationEnded():
            _end_generation(state, record)
        case RunClosed():
            state.closed = record
        case RunResumed():
            state.closed, state.stopping, state.resumed_seq = None, False, entry.seq
            state.failures_before_resume = len(state.failures)


def _create(state: RunState, entry: Entry, record: RunCreated) -> None:
    state.run, state.name, state.config_sha256 = record.run, record.name, record.config_sha256
    state.created_at, state.limits = entry.time, dict(record.limits)
    state.reflexes = dict(record.reflexes)
    state.parent, state.owner = record.parent, None if record.author == NOBODY else record.author
    state.agent = AgentState(record.agent, record.author, entry.seq)


def _take_alert(state: RunState, entry: Entry, record: AlertRaised | AlertCleared) -> None:
    if isinstance(record, AlertRaised):
        state.alerts.note_raised(entry.seq, entry.time, record)
        distrust(state.tree, state.checkpoints, record.alert)
    else:
        state.alerts.note_cleared(entry.time, record)


def _reach(state: RunState, step: int, branch: str) -> None:
    state.reached_step = max(state.reached_step, step)
    state.tree.reached[branch] = max(state.tree.reached.get(branch, 0), step)


def _take_branch(state: RunState, entry: Entry, record: BranchStarted | BranchResumed) -> None:
    if isinstance(record, BranchStarted):
        base = state.checkpoints.find(record.checkpoint)
        training = base.training if base is not None else 1
        state.tree.branches[record.branch] = Branch(
            record.branch, record.parent, record.checkpoint, record.step, training, entry.seq, record.rollback
        )
        _reach(state, record.step, record.branch)
    state.tree.head, state.tree.branched_seq = record.branch, entry.seq
    # A branch starts unpaused and without failures, whatever the state of the one before.
    state.paused = state.stopping = False
    state.failures_before_resume = len(state.failures)
    state.course_seq, state.course = entry.seq, f"the run was taken to branch {record.branch}"


def _start_generation(state: RunState, entry: Entry, record: GenerationStarted) -> None:
    # A pause, or a stop, outlives the trainers: what was decided before a failure is repeated after it.
    state.generation, state.ended, state.step = record, None, record.step
    state.started_seq = entry.seq
    state.digested = {}
    state.course_seq, state.course = entry.seq, f"the trainers began at step {record.step}"
    own = [
        each for each in state.checkpoints.existing if (each.branch, each.training) == (record.branch, record.training)
    ]
    left = {each.checkpoint: entry.seq for each in own if each.step > record.step}
    state.checkpoints.abandoned = left | state.checkpoints.abandoned
    state.tree.begun.setdefault((record.branch, record.training), []).append((entry.seq, record.step))
    state.tree.of_generation[record.generation] = record.branch
    state.training_of_generation[record.generation] = record.training
    state.trainings[record.training] = record.training_sha256
    _reach(state, record.step, record.branch)
    state.starts[record.uuid] = record.generation
    state.knobs = state.tree.knobs_of[record.branch] = dict(record.knobs)
    state.data.note_read(record.facts)
    if state.has_failed:
        state.failures[-1] = replace(state.failures[-1], restarted=record)


def _lose(state: RunState, entry: Entry, record: GenerationLost) -> None:
    last = state.failures[-1] if state.has_failed else None
    # A failure on the way to another branch does not count against that branch.
    is_of_another_branch = state.switching and state.ended is None and not state.has_failed
    if last is not None and last.record.is_inferred and not record.is_inferred:
        state.failures[-1] = replace(last, record=record)  # the driver's report of a failure inferred before
    else:
        died_on_the_way = state.has_failed or (state.switching and state.ended is not None)
        state.failures.append(GenerationFailure(record, entry.time, None if died_on_the_way else state.generation))
    if is_of_another_branch:
        state.failures_before_resume = len(state.failures)


def _end_generation(state: RunState, record: GenerationEnded) -> None:
    state.ended, state.step = record, record.step
    branch = state.tree.of_generation.get(record.generation, state.tree.head)
    _reach(state, record.step, branch)
    if record.ending == "finished":
        state.finished_trainings.add((branch, state.training_of_generation.get(record.generation, 1)))


def _settle(state: RunState, entry: Entry, record: CommandSettled) -> None:
    life = state.commands[record.uuid]
    life.settled, life.settled_seq, life.settled_at = record, entry.seq, entry.time
    del state.pending[record.uuid]
    state.scheduled.pop(record.uuid, None)
    life.branch = state.tree.of_generation.get(record.generation or 0, state.tree.head)
    life.training = state.training_of_generation.get(record.generation or 0, life.training)
    _take_effect(state, entry, life.command, record)


def _take_effect(state: RunState, entry: Entry, command: Command, outcome: CommandSettled | CommandRepeated) -> None:
    if outcome.status != "applied":
        return
    _reach(state, outcome.step or 0, state.tree.of_generation.get(outcome.generation or 0, state.tree.head))
    if state.switching and outcome.generation is not None:
        return  # a late report, of a branch that the run has left
    state.step = max(state.step, outcome.step or 0)
    for knob in command.intent.changed_knobs(outcome.after):
        state.changed_seq[knob] = entry.seq
    if command.intent.sets_knobs:
        state.knobs |= outcome.after or {}
    match intent := command.intent:
        case Pause():
            state.paused = True
        case Resume():
            state.paused = False
        case Stop():
            state.stopping, state.paused = True, False
        case AcknowledgeAlert():
            state.alerts.by_seq[intent.alert].acknowledged = command.uuid
        case SnoozeAlert():
            alert = state.alerts.by_seq[intent.alert].alert
            state.alerts.snoozed[(alert.kind, alert.subject)] = intent.until_step
        case StartAgent():
            state.agent.settings, state.agent.started_by = intent.settings, command.author
            state.agent.since_seq = entry.seq
        case StopAgent():
            state.agent.settings = None
        case Propose():
            state.agent.note_proposed(command, entry.seq, entry.time, state.step, state.tree.head)
        case NoteEffect():
            state.agent.effects[intent.command] = intent
        case DataIntent():
            by = (command.uuid, command.author, entry.seq, outcome.step or 0)
            state.data.note_applied(outcome.after, intent.sources_added(), intent.shards_added(), by)


def fold(entries: "list[Entry]") -> RunState:
    """Return the state after these entries, from an empty one."""
    state = RunState()
    for entry in entries:
        evolve(state, entry)
    return state
