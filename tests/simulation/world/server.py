"""A control server made of decisions and `evolve`, over a disk in memory that forgets what was not synced."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Fenced, RunEnded
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CommandSettled,
    Death,
    Ending,
    Entry,
    GenerationEnding,
    Record,
    RunCreated,
)
from control_plane.core.model.state import RunState, evolve, fold
from control_plane.core.rules import checkpoint_rules, crash_loop, decisions, recovery
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from tests.simulation.world.faults import Faults

CREATED = RunCreated(run="sim", name="simulated", author="ann", config_sha256="c0ffee")
LIMITS = {"lr": Limit(max=2e-3, max_factor=20), "weight_decay": Limit(max=1.0)}
LIMITED = CREATED.model_copy(update={"limits": LIMITS})


DEATH = Death(rank=1, reason="SIGKILL", signature=crash_loop.KILLED)
"""Of every generation that is lost: what is known of the failure is the same each time."""


class Crashed(Exception):
    """The control server died in the middle of a request."""


@dataclass(slots=True)
class Disk:
    """What survives a crash is `entries`; what was written and not synced is `written`.

    `writer` counts those who opened it: only the last of them may write. `skew_s` is how wrong the wall clock is.
    """

    entries: list[Entry] = field(default_factory=list)
    written: list[Entry] = field(default_factory=list)
    writer: int = 0
    skew_s: float = 0.0

    def open(self) -> int:
        """Become the writer; answers its number. What an earlier one has not synced is not honoured."""
        self.writer, self.written = self.writer + 1, []
        return self.writer

    def write(self, records: Sequence[Record]) -> list[Entry]:
        """Hand records to the operating system. They are not durable yet."""
        first = len(self.entries) + len(self.written) + 1
        fresh = [Entry(seq=seq, time=self.time(seq), record=record) for seq, record in enumerate(records, start=first)]
        self.written += fresh
        return fresh

    def time(self, seq: int) -> str:
        """What the wall clock says: a second an entry, and whatever it is wrong by."""
        return f"t{seq + self.skew_s:g}"

    def sync(self) -> None:
        """Make durable what was written."""
        self.entries += self.written
        self.written = []

    def lose_power(self) -> None:
        """Forget what is not durable."""
        self.written = []


def recover(entries: list[Entry]) -> RunState:
    """The state that a journal means, through its own text."""
    return fold([Entry.from_line(entry.line()) for entry in entries])


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that a server goes by: those of the core, unless a mutant changes one."""

    accept: Callable[..., list[Record]] = decisions.accept
    start_generation: Callable[[RunState, GenerationStart], list[Record]] = decisions.start_generation
    check_generation: Callable[[RunState, int], None] = decisions.check_generation
    settle: Callable[[RunState, CommandSettled], list[Record]] = decisions.settle
    recover: Callable[[list[Entry]], RunState] = recover
    evolve: Callable[[RunState, Entry], None] = evolve
    resume_point: Callable[[RunState], ResumePoint] = recovery.resume_point
    give_up: Callable[[RunState], str | None] = crash_loop.reason_to_give_up
    is_fenced: Callable[[int, int], bool] = lambda mine, newest: mine < newest
    retire: Callable[[RunState], list[tuple[CheckpointCommitted, str]]] = checkpoint_rules.retired_checkpoints
    checkpoints_first: bool = False


class SimServer:
    """One life of the control server. Any method may raise `Crashed`; then this life is over."""

    def __init__(
        self, disk: Disk, faults: Faults, rules: Rules, created: RunCreated = CREATED, origin: Origin | None = None
    ) -> None:
        """Recover from the disk and begin a term."""
        self._disk, self._faults, self._rules = disk, faults, rules
        self._writer = disk.open()
        self.state = rules.recover(disk.entries)
        self.commit(decisions.create(self.state, created, origin))
        self.commit(decisions.start_term(self.state, self.state.term + 1))

    def commit(self, records: list[Record]) -> None:
        """Durable first, then visible."""
        if not records:
            return
        self._may_crash("before_append")
        self._check_fence()
        fresh = self._disk.write(records)
        self._may_crash("before_sync")
        self._check_fence()
        self._disk.sync()
        self._may_crash("after_sync")
        for entry in fresh:
            self._rules.evolve(self.state, entry)
        self._may_crash("after_evolve")

    @property
    def is_current(self) -> bool:
        """Whether no other server has begun after this one."""
        return self._writer == self._disk.writer

    def _check_fence(self) -> None:
        if self._rules.is_fenced(self._writer, self._disk.writer):
            raise Fenced("this control server has been replaced")

    def _may_crash(self, point: str) -> None:
        self._faults.may_stop_server(point)  # type: ignore[arg-type]
        if self._faults.server_crashes(point):  # type: ignore[arg-type]
            raise Crashed(point)

    def submit(self, command: Command, adopted: AdoptedCheckpoint | None = None) -> int:
        """Accept a command; answers its seq. `adopted` is what an adoption has brought. Raises `Refused`."""
        if adopted is None or decisions.to_be_adopted(self.state, command) is None:
            self.commit(self._rules.accept(self.state, command))
        else:
            self.commit(self._rules.accept(self.state, command, adopted=adopted))
        return self.state.commands[command.uuid].accepted_seq

    def start_generation(self, start: GenerationStart) -> int:
        """The trainers begin; answers the generation. Raises `Refused`."""
        self.commit(self._rules.start_generation(self.state, start))
        return self.state.generation_number

    def offers(self, generation: int) -> tuple[Command, ...]:
        """The unsettled commands. Raises `Conflict` for an earlier generation."""
        self._rules.check_generation(self.state, generation)
        return self.state.pending_commands()

    def report(
        self, generation: int, outcomes: Sequence[CommandSettled], checkpoints: Sequence[CheckpointCommitted] = ()
    ) -> list[UUID]:
        """Outcomes, then checkpoints become records; answers which outcomes are durable. Raises `Refused`."""
        self._rules.check_generation(self.state, generation)
        if self._rules.checkpoints_first:
            self._commit_checkpoints(checkpoints)
        for outcome in outcomes:
            self.commit(self._rules.settle(self.state, outcome))
        self._commit_checkpoints(checkpoints)
        return [outcome.uuid for outcome in outcomes]

    def _commit_checkpoints(self, checkpoints: Sequence[CheckpointCommitted]) -> None:
        for checkpoint in checkpoints:
            self.commit(checkpoint_rules.commit_checkpoint(self.state, checkpoint))
        if checkpoints:
            gone = self._rules.retire(self.state)
            self.commit([CheckpointDiscarded(checkpoint=each.checkpoint, reason=reason) for each, reason in gone])

    def fail_generation(self, step: int) -> None:
        """The driver found the trainers dead, at this step as far as it has heard. Raises `Refused`."""
        self.commit(decisions.fail_generation(self.state, self.state.generation_number, step, 0.0, (DEATH,)))

    def resume_point(self, heard_step: int) -> ResumePoint:
        """The run's history, for new trainers. Raises `RunEnded` when starting again is hopeless."""
        self.commit(decisions.infer_failure(self.state, heard_step, 0.0))
        if self.state.closed is None and (reason := self._rules.give_up(self.state)):
            self.commit(decisions.close_run(self.state, "failed", reason))
        if self.state.closed is not None:
            raise RunEnded(f"run {self.state.run} has {self.state.closed.ending}")
        return self._rules.resume_point(self.state)

    def resume(self, back: bool = False) -> None:
        """Somebody has the run go on. Raises `Refused`."""
        self.commit(decisions.resume_run(self.state, "bo", back))

    def end_generation(self, generation: int, ending: GenerationEnding, step: int) -> None:
        """The trainers ended."""
        self.commit(decisions.end_generation(self.state, generation, ending, step, None))

    def close(self, ending: Ending) -> None:
        """The run is over."""
        self.commit(decisions.close_run(self.state, ending, None))
