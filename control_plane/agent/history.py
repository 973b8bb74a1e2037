"""History of a run from its journal: the autopilot's budget, the peak learning rate, the last change of each knob.

None of these is kept in an autopilot's memory, which a restart would lose, or taken from a snapshot's newest commands,
which fifty others would push out. So the bounds hold for a run, across all restarts of its autopilots.

An autopilot's command is one whose reason begins with `autopilot (` (see `policy.explain`), whichever token sent it: a
budget per token would be reset by a new token. Forging that reason can only make the autopilot more careful, or end it.
The command that comes of a proposal has the proposal's reason, also if a person has approved or edited it, and counts
once; the proposal itself counts while it is open, and after its trial, whatever came of it.

Mutual exclusion: one autopilot steers a run. Commands before an autopilot joined are of an earlier one, whose remaining
budget it inherits; a later command that it did not send is of a concurrent autopilot, and it ends. Every command is
sent with `based_on_seq`, so one of two that act at once is rejected, sees the other's command, and ends: one stays. Of
two open proposals made at once the earlier one's autopilot stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol
from uuid import UUID

from control_plane.agent.policy import AUTOPILOT
from control_plane.core.model.errors import Conflict
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents.agent import Propose
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.knobs import finite_numbers, is_number
from control_plane.core.model.proposals import ProposalClosed, ProposalStatus
from control_plane.core.model.records import (
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationStarted,
)
from control_plane.core.model.state import CommandStatus, RunState, evolve

ENTRIES_PER_PAGE = 1000
MAX_PAGES_PER_READ = 20
"""Joining a long run late reads its past in a few polls, without blocking Ctrl-C."""


class JournalReader(Protocol):
    """Reader interface for a journal. May raise `Unavailable` or `Refused`."""

    def journal(self, run: str, after: int = 0, limit: int = ...) -> list[Entry]:
        """Return the entries after the entry `after`."""
        ...


class SteeringHistory:
    """Steering history of a run, from its journal; the only other state is which commands this autopilot sent."""

    def __init__(self) -> None:
        self._state = RunState()
        self._joined_seq: int | None = None
        self._sent: set[UUID] = set()
        self._confirmed: set[UUID] = set()
        self._replayed: set[UUID] = set()
        self._by_autopilots: dict[UUID, CommandStatus] = {}
        self._proposed: dict[UUID, CommandStatus] = {}
        # Proposals by the command that came of them; and the step at which an answer was seen that declined one.
        self._proposal_of: dict[UUID, UUID] = {}
        self._declined_at: dict[UUID, int] = {}
        self.peak_lr = 0.0
        # The weight that each source of the data had first.
        self.priors: dict[str, float] = {}

    @property
    def seq(self) -> int:
        """Return the number of the last entry that was read."""
        return self._state.seq

    @property
    def state(self) -> RunState:
        """Return the run's state as far as the journal was read. Only to be looked at."""
        return self._state

    def read(self, reader: JournalReader, run: str, seq: int) -> bool:
        """Read up to entry `seq`; return whether it was reached. The first call marks where this autopilot joined."""
        self._joined_seq = seq if self._joined_seq is None else self._joined_seq
        for _ in range(MAX_PAGES_PER_READ):
            if self.seq >= seq:
                return True
            entries = reader.journal(run, after=self.seq, limit=ENTRIES_PER_PAGE)
            for entry in entries:
                self._take(entry)
            if not entries:
                return False
        return self.seq >= seq

    def send(self, uuid: UUID) -> None:
        """Note that this autopilot is about to send a command."""
        self._sent.add(uuid)

    def confirm(self, uuid: UUID) -> None:
        """Note that a command of this autopilot was applied, before the journal is read that far."""
        self._confirmed.add(uuid)

    def _take(self, entry: Entry) -> None:
        evolve(self._state, entry)
        for name, source in self._state.data.mixture.items():
            if name not in self.priors and is_number(source.get("weight")):
                self.priors[name] = float(source["weight"])
        match entry.record:
            case CommandAccepted(command=command):
                if is_autopilots(command.reason) and (command.intent.is_queued or isinstance(command.intent, Propose)):
                    kept = self._proposed if isinstance(command.intent, Propose) else self._by_autopilots
                    kept[command.uuid] = self._state.commands[command.uuid]
            case ProposalClosed(proposal=proposal, command=made, verdict=verdict):
                if made is not None:
                    self._proposal_of[made] = proposal
                elif verdict in ("rejected", "expired", "not_better"):
                    self._declined_at[proposal] = max(self._state.step, self._state.agent.proposals[proposal].step)
            case CommandScheduled(uuid=uuid):
                self._replayed.add(uuid)
            case GenerationStarted(knobs=knobs):
                self._raise_peak(knobs)
            case CommandSettled(before=before, after=after):
                self._raise_peak(before)
                self._raise_peak(after)
            case CommandRepeated(after=after):
                self._raise_peak(after)

    def _raise_peak(self, reading: Mapping[str, Any] | None) -> None:
        self.peak_lr = max([self.peak_lr, *finite_numbers((reading or {}).get(LEARNING_RATE))])

    @property
    def changes(self) -> int:
        """Return the number of commands of all autopilots of this run that were applied, are pending, or proposed, and
        of proposals that were tried."""
        made = sum(life.status in ("applied", "accepted") for life in self._by_autopilots.values())
        tried = sum(each.trial is not None and each.closed is not None for each in self._of_autopilots())
        return made + tried + sum(1 for _ in self.open_proposals())

    @property
    def decisions(self) -> int:
        """Return how many decisions the run's agent had made, since it was started, when it last proposed something.

        Those to keep since then are in no journal.
        """
        since = self._state.agent.since_seq
        numbers = (each.proposed.decision for each in self._of_autopilots() if each.seq > since)
        return max((number for number in numbers if number is not None), default=0)

    @property
    def applied(self) -> int:
        """Return the number of this autopilot's commands that every rank has confirmed."""
        applied = {uuid for uuid, life in self._by_autopilots.items() if life.status == "applied"}
        adopted = {
            each.command.uuid for each in self._of_autopilots() if each.closed and each.closed.verdict == "adopted"
        }
        return len(self._confirmed | {uuid for uuid in applied if self._is_own(uuid)} | (adopted & self._sent))

    def _is_own(self, uuid: UUID) -> bool:
        return uuid in self._sent or self._proposal_of.get(uuid) in self._sent

    def open_proposals(self) -> Iterator[ProposalStatus]:
        """Yield the open proposals of all autopilots of this run, oldest first."""
        return (each for each in self._of_autopilots() if each.closed is None)

    def _of_autopilots(self) -> Iterator[ProposalStatus]:
        return (each for each in self._state.agent.proposals.values() if is_autopilots(each.command.reason))

    def closing_of(self, proposal: UUID) -> ProposalClosed | None:
        """Return how a proposal was closed, None if it is open or unknown."""
        known = self._state.agent.proposals.get(proposal)
        return known.closed if known else None

    def declined(self) -> Iterator[tuple[ProposalStatus, int]]:
        """Yield the proposals of autopilots that were rejected, expired or no better on trial, each with the run's step
        at that time."""
        known = self._state.agent.proposals
        return (
            (known[uuid], at) for uuid, at in self._declined_at.items() if is_autopilots(known[uuid].command.reason)
        )

    def applied_by_autopilots(self) -> Iterator[CommandStatus]:
        """Yield the applied commands of all autopilots of this run, oldest first."""
        return (life for life in self._by_autopilots.values() if life.status == "applied")

    @property
    def inherited(self) -> tuple[int, int | None]:
        """Return the number of changes made by earlier autopilots, and the step of the last of them."""
        earlier = [life for uuid, life in self._by_autopilots.items() if not self._is_own(uuid)]
        counted = [life for life in earlier if life.status in ("applied", "accepted")]
        return len(counted), max((life.settled.step or 0 for life in counted if life.settled), default=None)

    def check_alone(self, run: str) -> None:
        """Raise `Conflict` if another autopilot has sent a command since this one joined (mutual exclusion)."""
        own = [self._proposed[uuid].accepted_seq for uuid in self._sent & self._proposed.keys()]
        for uuid, life in (*self._by_autopilots.items(), *self._proposed.items()):
            if uuid in self._sent or uuid in self._replayed or life.accepted_seq <= (self._joined_seq or 0):
                continue
            if uuid in self._proposal_of:
                continue  # its proposal was looked at, or is older
            based_on = life.command.based_on_seq
            if (
                uuid in self._proposed
                and based_on is not None
                and any(based_on < seq < life.accepted_seq for seq in own)
            ):
                continue  # it had not seen our own, earlier proposal; now it does, and ends
            raise Conflict(
                f"another autopilot is active on run {run}: {life.command.author} sent '{life.command.describe()}' "
                f"(journal entry {life.accepted_seq}) after this one joined, so this one ends; only one autopilot may "
                "steer a run at a time"
            )

    @property
    def mixed_at(self) -> int | None:
        """Return the step at which weights were last set, by anybody, or an autopilot's proposal of it declined."""
        return self.last_of_kind("set_mixture")

    @property
    def is_mixing(self) -> bool:
        """Return whether a change of the sources' weights, by anybody, is accepted and has no outcome yet."""
        return any(isinstance(each.intent, SetMixture) for each in self._state.pending_commands())

    def last_change(self, knob: str) -> tuple[int | None, bool]:
        """Return the step of a knob's last change (or last run of `action/NAME`), and whether one is pending.

        Counts changes by anybody in the history of the current branch, but none that a rollback left behind.
        """
        steps: list[int] = []
        pending = False
        for life in self._state.commands.values():
            if _changes(life, knob):
                pending = pending or life.settled is None
                steps += self._steps_of(life)
        return max(steps, default=None), pending

    def _steps_of(self, life: CommandStatus) -> Iterable[int]:
        generation, reach = self._state.generation_number, self._reach()
        for outcome in (life.settled, life.repeated):
            if outcome is None or outcome.status != "applied" or outcome.step is None:
                continue
            if outcome.generation == generation or outcome.step <= reach.get(life.branch, -1):
                yield outcome.step

    def is_on_course(self, life: CommandStatus) -> bool:
        """Return whether an applied command belongs to the history of the current branch."""
        return any(True for _ in self._steps_of(life))

    def next_change_after(self, life: CommandStatus, until: int) -> int:
        """Return the step of the next change of the training after this one, at most `until`."""
        start = life.settled.step if life.settled and life.settled.step is not None else 0
        others = (each for each in self._state.commands.values() if each.command.intent.changes_training)
        later = [step for other in others if other is not life for step in self._steps_of(other) if step > start]
        return min([until, *later])

    def last_of_kind(self, kind: str) -> int | None:
        """Return the step at which a command of this kind was last applied, or an autopilot's proposal declined."""
        lives = (life for life in self._state.commands.values() if life.command.intent.kind == kind)
        steps = [step for life in lives for step in self._steps_of(life)]
        steps += [at for each, at in self.declined() if each.proposed.intent.kind == kind]
        return max(steps, default=None)

    def _reach(self) -> dict[str, int]:
        """Return up to which step each branch belongs to the history of the current generation."""
        state = self._state
        if state.generation is None:
            return {}
        name: str | None = state.generation.branch
        step, reach = state.generation.step, dict[str, int]()
        while name is not None and name in state.tree.branches and name not in reach:
            reach[name] = step
            step, name = min(step, state.tree.branches[name].step), state.tree.branches[name].parent
        return reach


def is_autopilots(reason: str | None) -> bool:
    """Return whether a reason is that of an autopilot's command."""
    return (reason or "").startswith(AUTOPILOT)


def _changes(life: CommandStatus, knob: str) -> bool:
    named = life.command.intent.changed_knobs(life.settled.after if life.settled else None)
    # What a pattern covers is known from the ranks' readback; until then, whatever it matches.
    return knob in named or any(":" in name and fnmatchcase(knob, name) for name in named)
