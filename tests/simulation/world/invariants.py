"""The invariants, kept by books of their own: a deliberately dumb second reading of the journal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint, DeleteCheckpoint, PinCheckpoint
from control_plane.core.model.records import (
    BranchResumed,
    BranchStarted,
    CheckpointDiscarded,
    CheckpointPinned,
    CommandAccepted,
    CommandRepeated,
    CommandSettled,
    Entry,
    GenerationStarted,
    Readback,
    RunResumed,
)
from control_plane.core.model.state import RunState
from tests.simulation.world.fleet import Fleet, Violation
from tests.simulation.world.server import Disk
from tests.simulation.world.turns import Turns
from tests.simulation.world.undisturbed import FLAGS, Undisturbed, is_repeatable

ABOUT_KNOBS = ("set_learning_rate", "set_knobs", "set_schedule", "freeze", "unfreeze")
MAX_RATE, MAX_DECAY = 2e-3, 1.0
"""The limits of the simulated run, once more."""


@dataclass(slots=True)
class Books:
    """What was promised to operators, and what the durable journal says, entry by entry."""

    acknowledged: dict[UUID, int] = field(default_factory=dict)
    generations: dict[int, Fleet] = field(default_factory=dict)
    read: list[Entry] = field(default_factory=list)
    accepted: dict[UUID, Command] = field(default_factory=dict)
    settled: dict[UUID, CommandSettled] = field(default_factory=dict)
    starts: list[UUID] = field(default_factory=list)
    knobs: Readback = field(default_factory=dict)
    history: Undisturbed = field(default_factory=Undisturbed)
    # The last record that changed the run's course, or said that it will be changed.
    course_seq: int = 0
    # The pauses, resumes and stops that took effect, in their order.
    holds: list[str] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    discarded: set[str] = field(default_factory=set)
    turns: Turns = field(default_factory=Turns)

    def check(self, disk: Disk, state: RunState | None, fleet: Fleet | None) -> None:
        """All invariants that hold at any time."""
        self._check_journal(disk)
        self._check_promises(disk)
        if state is not None and not disk.written:
            self._check_state(state)
        if fleet is not None and fleet.step > fleet.excused_until:
            self._check_agreement(fleet)
            self._check_undisturbed(fleet)
            self.turns.check_fleet(fleet)

    def _check_journal(self, disk: Disk) -> None:
        if len(disk.entries) < len(self.read) or (self.read and disk.entries[len(self.read) - 1] is not self.read[-1]):
            raise Violation("I2 durability: the journal lost or changed what was durable")
        for entry in disk.entries[len(self.read) :]:
            if entry.seq != len(self.read) + 1:
                raise Violation(f"I3 order: record {entry.seq} follows record {len(self.read)}")
            self.read.append(entry)
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        self.turns.note(entry.seq, entry.record, self.accepted, self.history)
        match entry.record:
            case CommandAccepted(command=command):
                if command.uuid in self.accepted:
                    raise Violation(f"I1 exactly once: record {entry.seq} accepts {command.uuid} again")
                self._check_acceptance(entry.seq, command)
                self.accepted[command.uuid] = command
            case CommandSettled() as outcome:
                self._check_outcome(entry.seq, outcome)
                self.settled[outcome.uuid] = outcome
            case GenerationStarted() as start:
                if start.uuid in self.starts:
                    raise Violation(f"I1 exactly once: record {entry.seq} starts {start.uuid} again")
                self.starts.append(start.uuid)
                self.knobs, self.course_seq = dict(start.knobs), entry.seq
            case CommandRepeated() as again:
                self._check_repetition(entry.seq, again)
                self._take_effect(self.accepted[again.uuid], again.after)
            case RunResumed():
                self.history.go_on()
            case BranchStarted() | BranchResumed():
                self.course_seq, self.holds = entry.seq, []
            case CheckpointPinned(checkpoint=name, pinned=pinned):
                self.pinned = self.pinned | {name} if pinned else self.pinned - {name}
            case CheckpointDiscarded(checkpoint=name):
                if name in self.pinned:
                    raise Violation(f"I5 checkpoints: record {entry.seq} discards {name}, which is pinned")
                self.discarded.add(name)

    def _take_effect(self, command: Command, after: Readback | None) -> None:
        """What is told late, of a branch that the run has left, says nothing of how it stands."""
        if self.turns.on_the_way:
            return
        self.knobs |= after or {} if _is_about_knobs(command) else {}
        if command.intent.kind in FLAGS:
            self.holds.append(command.intent.kind)

    def _check_acceptance(self, seq: int, command: Command) -> None:
        """What should have been refused. `_note` has not entered it yet."""
        intent = command.intent
        if command.based_on_seq is not None and command.based_on_seq < self.course_seq:
            raise Violation(f"I3 order: record {seq} accepts what is based on {command.based_on_seq}, before a change")
        if isinstance(intent, SetLearningRate) and (intent.value or 0) > MAX_RATE:
            raise Violation(f"I12 limits: record {seq} accepts a rate of {intent.value}")
        if intent.kind in ("pause", "resume") and self._will_be_paused() == (intent.kind == "pause"):
            raise Violation(f"I13 honest ack: record {seq} accepts a {intent.kind} that changes nothing")
        if is_repeatable(command) or isinstance(command.intent, Rollback):
            self.course_seq = seq

    def _will_be_paused(self) -> bool:
        """By what took effect, and then by what is waiting for no later step."""
        waiting = [each for uuid, each in self.accepted.items() if uuid not in self.settled]
        due = [each.intent.kind for each in waiting if each.not_before_step is None]
        words = ["resume", *self.holds, *(kind for kind in due if kind in ("pause", "resume"))]
        return words[-1] == "pause"

    def check_candidates(self, disk: Disk, names: Sequence[str]) -> None:
        """What new trainers are told to start from."""
        self._check_journal(disk)
        for name in names:
            saved = self.turns.files[name]
            if not self.history.leads_on(saved.effects, saved.step):
                raise Violation(f"I6 replay: {name} is offered to {self.history.head}, and is not of its history")
        if gone := self.discarded.intersection(names):
            raise Violation(f"I5 checkpoints: {sorted(gone)} is offered to be restored, and was discarded")

    def _check_outcome(self, seq: int, outcome: CommandSettled) -> None:
        if outcome.uuid in self.settled:
            raise Violation(f"I1 exactly once: record {seq} settles {outcome.uuid} again")
        if outcome.uuid not in self.accepted:
            raise Violation(f"I3 order: record {seq} settles what was never accepted")
        command = self.accepted[outcome.uuid]
        if outcome.status == "expired" or outcome.generation is None:
            self._check_without_ranks(seq, outcome, command)
            return
        if outcome.status != "cancelled" and (outcome.step or 0) < (command.not_before_step or 0):
            raise Violation(f"I3 order: settled at step {outcome.step}, not to be before {command.not_before_step}")
        latest = command.not_after_step
        if outcome.status == "applied" and latest is not None and (outcome.step or 0) > latest:
            raise Violation(f"I3 order: applied at step {outcome.step}, not to be after {latest}")
        fleet = self.generations.get(len(self.starts))
        if fleet is None or fleet.replicas[0].ledger.get(outcome.uuid) != outcome:
            raise Violation(f"I13 honest ack: record {seq} is not what the ranks of its generation decided")
        if outcome.status == "applied":
            if not isinstance(command.intent, Cancel):
                self._check_live(seq, outcome, fleet)
            self.history.tell(self.turns.of_generation[outcome.generation], command, outcome)
            self._take_effect(command, outcome.after)

    def _check_without_ranks(self, seq: int, outcome: CommandSettled, command: Command) -> None:
        """What was settled without being carried out: its time had passed, or nobody was there to do it."""
        if outcome.status == "expired" and outcome.step is not None:
            if command.not_after_step is None or outcome.step <= command.not_after_step:
                raise Violation(f"I3 order: record {seq} says that a command expired before its time")
        elif outcome.status == "applied" and not isinstance(
            command.intent, Cancel | PinCheckpoint | DeleteCheckpoint | AdoptCheckpoint | Rollback
        ):
            raise Violation(f"I13 honest ack: record {seq} says applied, and there were no ranks")

    def _check_repetition(self, seq: int, again: CommandRepeated) -> None:
        first, command = self.settled.get(again.uuid), self.accepted.get(again.uuid)
        if first is None or command is None or first.status != "applied" or not is_repeatable(command):
            raise Violation(f"I6 replay: record {seq} repeats what was not applied before, or changes nothing")
        if (again.status, again.step, again.after) != (first.status, first.step, first.after):
            raise Violation(
                f"I6 replay: record {seq} repeats {first.status} at step {first.step} "
                f"as {again.status} at step {again.step}"
            )
        if again.generation != len(self.starts):
            raise Violation(f"I6 replay: record {seq} is of generation {again.generation}, which is over")

    def _check_undisturbed(self, fleet: Fleet) -> None:
        """I6: the ranks are what they would be if nobody had ever died."""
        if not fleet.begun:
            return
        fresh = [
            (self.accepted[uuid], decision.outcome)
            for uuid, decision in fleet.decisions.items()
            if uuid not in self.settled
        ]
        expected = self.history.at(fleet.branch, fleet.step, fresh)
        first, lead = fleet.ranks[0], fleet.replicas[0]
        if (self._changes(first.effects), first.rates) != (expected.effects, expected.rates):
            raise Violation(f"I6 replay: at step {fleet.step} live is {first.rates}, undisturbed {expected.rates}")
        if first.values != expected.values:
            raise Violation(f"I6 replay: at step {fleet.step} live is {first.values}, undisturbed {expected.values}")
        if first.marks != expected.marks:
            raise Violation(f"I6 replay: at step {fleet.step} live is {first.marks}, undisturbed {expected.marks}")
        if not fleet.leaving and (lead.paused, lead.stopping) != (expected.paused, expected.stopping):
            raise Violation(f"I6 replay: at step {fleet.step} the ranks' pause or stop is not that of their history")

    def _check_live(self, seq: int, outcome: CommandSettled, fleet: Fleet) -> None:
        if any(rank.effects.count(outcome.uuid) != 1 for rank in fleet.ranks):
            raise Violation(f"I13 honest ack: record {seq} says applied, but not every rank carries it once")
        decision = fleet.decisions.get(outcome.uuid)
        if decision and any(live != outcome.after for live in decision.live):
            raise Violation(f"I13 honest ack: record {seq} says {outcome.after}, live was {decision.live}")

    def _check_promises(self, disk: Disk) -> None:
        for uuid, seq in self.acknowledged.items():
            entry = disk.entries[seq - 1] if seq <= len(disk.entries) else None
            if entry is None or not isinstance(entry.record, CommandAccepted) or entry.record.command.uuid != uuid:
                raise Violation(f"I2 durability: command {uuid} was acknowledged as record {seq} and is not there")

    def _check_state(self, state: RunState) -> None:
        pending = [uuid for uuid in self.accepted if uuid not in self.settled]
        if list(state.pending) != pending:
            raise Violation(f"I2 durability: the server holds {len(state.pending)} pending, the journal {len(pending)}")
        if (state.seq, state.generation_number) != (len(self.read), len(self.starts)):
            raise Violation(f"I3 order: the server is at record {state.seq}, the journal at {len(self.read)}")
        if state.knobs != self.knobs:
            raise Violation(f"I13 honest ack: the server says {state.knobs}, the journal {self.knobs}")

    def _check_agreement(self, fleet: Fleet) -> None:
        """I4: knobs, effects, ledgers and holds are equal on all ranks; effects are the applied part of the ledger."""
        first, lead = fleet.ranks[0], fleet.replicas[0]
        fresh = list(lead.ledger.items())[fleet.agreed :]
        for rank, replica in zip(fleet.ranks, fleet.replicas, strict=True):
            mine = (rank.rates, rank.values, rank.marks, rank.effects)
            if mine != (first.rates, first.values, first.marks, first.effects):
                raise Violation(f"I4 agreement: rank {rank.rank} has {rank.rates} live, rank 0 has {first.rates}")
            same_ledger = len(replica.ledger) == len(lead.ledger)
            if not same_ledger or any(replica.ledger.get(uuid) != mine for uuid, mine in fresh):
                raise Violation(f"I4 agreement: rank {rank.rank} and rank 0 have taken different decisions")
            if (replica.paused, replica.stopping, replica.repeats) != (lead.paused, lead.stopping, lead.repeats):
                raise Violation(f"I4 agreement: rank {rank.rank} and rank 0 differ about what holds them")
        if max(first.rates) > MAX_RATE or max(first.values["weight_decay"]) > MAX_DECAY:
            raise Violation(f"I12 limits: live is {first.rates}, {first.values}")
        elsewhere = self.history.elsewhere(fleet.branch)
        mine = [uuid for uuid, o in lead.ledger.items() if o.status == "applied" and uuid not in elsewhere]
        if self._changes(first.effects) != self._changes(mine):
            raise Violation("I13 honest ack: what the ranks carry is not what they decided")
        fleet.agreed = len(lead.ledger)

    def _changes(self, uuids: Iterable[UUID]) -> list[UUID]:
        # What changes nothing in the training is not repeated: after a loss it is in the ledger and not in the ranks.
        over = self.history.over
        return [uuid for uuid in uuids if uuid not in over and is_repeatable(self.accepted[uuid])]

    def check_settled(self, disk: Disk, fleet: Fleet, state: RunState) -> None:
        """At rest: what the ranks decided, the journal says; what the journal says, the ranks have live."""
        for uuid, outcome in fleet.replicas[0].ledger.items():
            if uuid not in self.settled:
                raise Violation(f"I1 exactly once: {uuid} was {outcome.status} by the ranks and is still pending")
        if fleet.replicas[0].repeats:
            raise Violation("I6 replay: at the end there is still something to repeat")
        if fleet.replicas[0].paused != state.paused or fleet.stopping != state.stopping:
            raise Violation("I13 honest ack: the server and the ranks differ about a pause or a stop")
        if any(rank.rates != state.knobs["lr"] for rank in fleet.ranks):
            raise Violation(f"I13 honest ack: the server says {state.knobs['lr']}, live is {fleet.ranks[0].rates}")
        if len(disk.entries) != state.seq:
            raise Violation("I2 durability: the server is ahead of its journal")

    def check_finished(self, disk: Disk) -> None:
        """After the end: every accepted command has exactly one end."""
        self._check_journal(disk)
        left = [uuid for uuid in self.accepted if uuid not in self.settled]
        if left:
            raise Violation(f"I1 exactly once: {len(left)} commands were left without an end")


def _is_about_knobs(command: Command) -> bool:
    return command.intent.kind in ABOUT_KNOBS
