"""Messages about a run's agent and its proposals, for people."""

from uuid import UUID

from pydantic import Field

from control_plane.core.model.commands import Intent
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents.agent import AgentSettings, NoteEffect
from control_plane.core.model.proposals import Verdict
from control_plane.core.model.values import MAIN


class ProposalView(Message):
    """A proposal and what has become of it. `uuid` names it.

    risk: with the run's values of now, `low` or `high`.
    left_s: seconds until its deadline; None: it is closed.
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
