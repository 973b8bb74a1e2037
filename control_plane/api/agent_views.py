"""Messages about a run's agent and its proposals, for people."""

from typing import Literal, Protocol
from uuid import UUID

from pydantic import Field

from control_plane.api.agent_spending import Budgets, Spent
from control_plane.core.model.commands import Intent
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents.agent import AgentSettings, NoteEffect
from control_plane.core.model.proposals import Verdict
from control_plane.core.model.values import MAIN


class ProposalView(Message):
    """A proposal and what has become of it. `uuid` names it.

    risk: with the run's values of now, `low` or `high`.
    left_s: seconds until its deadline; None: it is closed, or on trial.
    trial: how far its trial is, as a sentence; None: it is not on trial.
    verdict, by, note: how it was closed, by whom, and why; `command` is what came of it, with its `effect` if noted.
    """

    uuid: UUID
    author: str
    intent: Intent
    what: str
    reason: str | None = None
    seq: int
    made_at: str
    step: int
    branch: str = MAIN
    risk: str
    left_s: float | None = None
    default: str = "reject"
    trial: str | None = None
    verdict: Verdict | None = None
    by: str = ""
    closed_at: str | None = None
    note: str | None = None
    command: UUID | None = None
    effect: NoteEffect | None = None

    @property
    def is_open(self) -> bool:
        """True if nobody has answered it."""
        return self.verdict is None


class AgentView(Message):
    """The agent of a run as its journal has it. settings: None if none is started."""

    settings: AgentSettings | None = None
    started_by: str = ""
    since_seq: int = 0
    proposals: tuple[ProposalView, ...] = Field(default=(), description="the open ones, and the newest others")
    made: int = Field(default=0, description="proposals so far")


class AgentProcess(Message):
    """The process of a run's agent, as the gateway supervises it.

    state: `none`: no agent is started, or the run has ended; `ended`: it has ended by itself, and its log says why;
        `given_up`: it failed too often without a decision. Stop and start it to try again.
    reason: why it is not running, or has failed last.
    since: when it came into this state (UTC).
    failures: of this agent, since it was started or the gateway was.
    """

    state: Literal["none", "running", "restarting", "ended", "given_up"] = "none"
    reason: str | None = None
    since: str | None = None
    failures: int = 0


class AgentReport(Message):
    """A run's agent in full: what is wanted, what runs, what it has spent, and what it proposed.

    model: the model that the gateway's agents ask; None: it has no key, and they follow a rule.
    spent: None: it is not known, see `ledger_reason`; then no call is made.
    """

    run: str
    status: str
    step: int
    agent: AgentView
    process: AgentProcess
    model: str | None = None
    model_reason: str | None = None
    budgets: Budgets = Budgets()
    spent: Spent | None = None
    ledger_reason: str | None = None
    last_decision: str | None = None


class AgentsPort(Protocol):
    """Supervision of the agents of a gateway."""

    def process(self, run: str) -> AgentProcess:
        """Return the state of a run's agent."""
        ...

    def model(self) -> tuple[str | None, str | None]:
        """Return the model that agents ask, or None and the reason."""
        ...

    def budgets(self) -> Budgets:
        """Return the budgets of each run's agent."""
        ...
