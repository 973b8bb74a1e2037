"""Proposals of a run's agent as its journal has them: a trial of one, its end, and the state of them all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents.agent import AgentSettings, NoteEffect, Propose, Steps
from control_plane.core.model.intents.course import First
from control_plane.core.model.values import MAIN, BranchName

Verdict = Literal[
    "automatic", "approved", "edited", "rejected", "expired", "withdrawn", "adopted", "not_better", "abandoned"
]
"""How a proposal was closed: by the agent's mode, by a person, by its deadline or the run's end, by its author; or by
a trial: better with it (adopted), not better, or ended before that was known (abandoned)."""


class TrialStarted(Message):
    """A proposal is tried: `steps` steps on `branch` without it, then the same steps with it on `trial_branch`.

    intent: what is tried; another one than was proposed if a person has edited it.
    by, note: who approved it, and why; empty: nobody, the mode or the deadline decided.
    """

    type: Literal["TrialStarted"] = "TrialStarted"
    proposal: UUID
    intent: First
    steps: Steps
    branch: str
    trial_branch: BranchName
    by: str = ""
    note: str | None = None


class ProposalClosed(Message):
    """A proposal was closed. `command` is what came of it, accepted by the same write; None: nothing.

    proposal: uuid of the command that proposed it.
    by: whose verdict it is; empty: nobody's, the mode or the deadline decided.
    """

    type: Literal["ProposalClosed"] = "ProposalClosed"
    proposal: UUID
    verdict: Verdict
    by: str = ""
    command: UUID | None = None
    reason: str | None = None


@dataclass(slots=True)
class ProposalStatus:
    """One proposal, and how it was closed. `branch`, `settings`: the ones when it was made.

    trial, trial_seq: its trial, and the entry that began it; None: it was not tried.
    """

    command: Command
    seq: int
    made_at: str
    step: int
    settings: AgentSettings
    branch: str = MAIN
    closed: ProposalClosed | None = None
    closed_at: str | None = None
    trial: TrialStarted | None = None
    trial_seq: int = 0

    @property
    def is_on_trial(self) -> bool:
        """True while it is tried."""
        return self.trial is not None and self.closed is None

    @property
    def proposed(self) -> Propose:
        """The intent that proposes."""
        assert isinstance(self.command.intent, Propose)
        return self.command.intent


@dataclass(slots=True)
class AgentState:
    """The agent of one run, as its journal has it. Only `state.evolve` changes it.

    settings: of the agent that runs; None: none does.
    since_seq: the entry that started it.
    """

    settings: AgentSettings | None = None
    started_by: str = ""
    since_seq: int = 0
    # Proposals that were made, by the uuid of the command that made them, in order.
    proposals: dict[UUID, ProposalStatus] = field(default_factory=dict)
    # Effects that were noted, by the uuid of the applied command.
    effects: dict[UUID, NoteEffect] = field(default_factory=dict)
    # The proposal that was tried last.
    tried: UUID | None = None

    def open_proposals(self) -> Iterator[ProposalStatus]:
        """Yield the proposals that nobody has answered, oldest first."""
        return (each for each in self.proposals.values() if each.closed is None)

    def note_proposed(self, command: Command, seq: int, time: str, step: int, branch: str) -> None:
        """Take over a proposal. Without an agent the defaults of its settings hold."""
        assert isinstance(command.intent, Propose)
        settings, step = self.settings or AgentSettings(), max(step, command.intent.step or 0)
        self.proposals[command.uuid] = ProposalStatus(command, seq, time, step, settings, branch)

    def note(self, seq: int, time: str, record: TrialStarted | ProposalClosed) -> None:
        """Take over that the trial of a proposal began, or that one was closed."""
        status = self.proposals[record.proposal]
        if isinstance(record, TrialStarted):
            status.trial, status.trial_seq, self.tried = record, seq, record.proposal
        else:
            status.closed, status.closed_at = record, time
