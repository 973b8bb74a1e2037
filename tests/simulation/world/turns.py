"""What the books know of the run's branches: who asked for each, which there are, and what each was to begin with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import (
    MAIN,
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    GenerationStarted,
    Record,
)
from tests.simulation.world.fleet import Fleet, Violation
from tests.simulation.world.saved import Saved
from tests.simulation.world.undisturbed import Undisturbed


@dataclass(slots=True)
class Turns:
    """I14: a rollback that took effect makes one branch, or goes on with one; what a branch begins with is its own."""

    files: Mapping[str, Saved] = field(default_factory=dict)
    of_generation: dict[int, str] = field(default_factory=dict)
    bases: set[str] = field(default_factory=set)
    # Applied rollbacks whose branch the next record must name; and those that were accepted and are not settled.
    owed: Rollback | None = None
    owed_by: UUID | None = None
    waiting: dict[UUID, Rollback] = field(default_factory=dict)
    # What the branch that has just begun is still to be given.
    firsts: list[object] = field(default_factory=list)
    # The branch and the step for which a command was meant.
    meant_for: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    # The branch whose checkpoint the next record must be.
    adopting: str | None = None
    # Whether the run was taken elsewhere, and no trainers have begun there yet.
    on_the_way: bool = False

    def note(self, seq: int, record: Record, accepted: Mapping[UUID, Command], history: Undisturbed) -> None:
        """The next record. `accepted` and `history` are what came before it."""
        if self.owed is not None and not isinstance(record, BranchStarted | BranchResumed):
            raise Violation(f"I14 branches: record {seq} stands where a rollback should have made its branch")
        if self.adopting is not None and getattr(record, "branch", None) != self.adopting:
            raise Violation(f"I14 branches: record {seq} stands where an adopted branch should have its checkpoint")
        if self.firsts and not isinstance(record, CommandAccepted | CommandScheduled):
            raise Violation(f"I14 branches: record {seq} stands where a branch should have been given what comes first")
        match record:
            case BranchStarted() | BranchResumed():
                self._turn(seq, record, history)
            case BranchAdopted():
                if record.branch in history.lines:
                    raise Violation(f"I14 branches: record {seq} adopts {record.branch}, and there is one")
                self.adopting = record.branch
            case CheckpointCommitted(branch=branch) if branch == self.adopting:
                history.adopt(branch, self.files[record.checkpoint].effects)
                self.bases.add(record.checkpoint)
                self.adopting = None
            case CommandAccepted(command=command):
                self._accept(seq, command)
            case CommandScheduled(uuid=uuid, step=step):
                self.meant_for[uuid] = (history.head, step)
            case CommandSettled() as outcome:
                self._settle(seq, outcome, accepted.get(outcome.uuid))
            case GenerationStarted() as start:
                if start.branch != history.head:
                    raise Violation(f"I14 branches: record {seq} starts {start.branch}, the run is on {history.head}")
                self.of_generation[start.generation], self.on_the_way = start.branch, False
            case CheckpointDiscarded(checkpoint=name):
                if name in self.bases or any(each.checkpoint == name for each in self.waiting.values()):
                    raise Violation(f"I14 branches: record {seq} discards {name}, on which a branch stands or will")

    def _turn(self, seq: int, record: BranchStarted | BranchResumed, history: Undisturbed) -> None:
        if self.owed is None or record.rollback != self.owed_by:
            raise Violation(f"I14 branches: record {seq} goes to {record.branch}, and nobody asked for it")
        is_new, self.on_the_way = isinstance(record, BranchStarted), True
        if is_new == (record.branch in history.lines) or is_new == (self.owed.checkpoint is None):
            raise Violation(f"I14 branches: record {seq} goes to {record.branch}, which is not what was asked for")
        if isinstance(record, BranchStarted):
            saved = self.files.get(record.checkpoint)
            if saved is None or (saved.step, saved.branch) != (record.step, record.parent):
                raise Violation(f"I14 branches: record {seq} leaves {record.parent} where it never was")
            history.branch_off(record.branch, saved.effects)
            self.bases.add(record.checkpoint)
            self.firsts = list(self.owed.first)
        else:
            history.turn(record.branch)
        self.owed = self.owed_by = None

    def _accept(self, seq: int, command: Command) -> None:
        if self.firsts and command.intent != self.firsts.pop(0):
            raise Violation(f"I14 branches: record {seq} is not what the branch was to begin with")
        if isinstance(command.intent, Rollback):
            self.waiting[command.uuid] = command.intent

    def _settle(self, seq: int, outcome: CommandSettled, command: Command | None) -> None:
        self.waiting.pop(outcome.uuid, None)
        if outcome.uuid in self.meant_for and outcome.step is not None:
            where = self.of_generation.get(outcome.generation or 0, MAIN), outcome.step
            if where != self.meant_for[outcome.uuid]:
                raise Violation(f"I14 branches: record {seq} is of {where}, meant for {self.meant_for[outcome.uuid]}")
        if command is not None and isinstance(command.intent, Rollback) and outcome.status == "applied":
            self.owed, self.owed_by = command.intent, command.uuid

    def check_fleet(self, fleet: Fleet) -> None:
        """What the ranks have done, whether the journal knows it or not."""
        lead = fleet.replicas[0]
        if lead.leaving is not None and next(reversed(lead.ledger)) != lead.leaving.uuid:
            raise Violation("I14 branches: the ranks went on to decide when they had left")
        for uuid, (branch, step) in self.meant_for.items():
            if branch == fleet.branch and fleet.begun and fleet.step > step and uuid not in lead.ledger:
                raise Violation(f"I14 branches: step {fleet.step} of {branch} was made without what comes first")
