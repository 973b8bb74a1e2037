"""Intents about a run's agent: start and stop it, its proposals, the answers of people, and the effects it measured.

An agent never changes a run by itself: it proposes a command. By the agent's mode and the command's risk the control
server accepts the command at once, or leaves it to a person: approve, edit or reject, until its deadline decides.
"""

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from control_plane.core.model.intent_base import BaseIntent, Message, ServerIntent
from control_plane.core.model.intents.course import Evaluate, Pause, Resume, Rollback, SaveCheckpoint, Stop
from control_plane.core.model.intents.data import AddShards, SetMixture
from control_plane.core.model.intents.grants import NO_GRANTS, Grants
from control_plane.core.model.intents.training import (
    Freeze,
    ResetParameters,
    RunAction,
    SetKnobs,
    SetLearningRate,
    SetSchedule,
    SkipSamples,
    Unfreeze,
)
from control_plane.core.model.values import MAX_FACTOR, MAX_LEARNING_RATE, MAX_NOTE_CHARS, MAX_STEP, Finite, Name

AgentMode = Literal["suggest", "guarded", "auto"]
"""`suggest`: a person answers every proposal. `guarded`: what is of low risk is done at once, the rest is answered by a
person. `auto`: all that the role `agent` may send is done at once."""

ActionSpace = Literal["published", "factors", "full"]
"""`published`: double, halve or keep the learning rate. `factors`: also any factor within the bounds. `full`: also a
schedule, an evaluation, a save, and for a person to approve: a rollback, skipped samples, a pause, a stop."""

POLICIES = (
    "auto",
    "model",
    "rule",
    "guarded",
    "probing",
    "greedy-shipped",
    "greedy-published",
    "plateau",
    "zclip",
    "learned",
    "random",
    "nothing",
    "ado",
    "odm",
    "natural",
    "uniform",
)
"""Policies that an agent can be started with. Checked where one is started: older journals may hold others."""

MIXTURE_POLICIES = ("ado", "odm", "natural", "uniform")
"""Those that set the weights of the run's sources, and nothing else."""

MIXTURE_EVERY_STEPS = 50
"""Steps between two looks of a policy of mixtures, unless it is told others."""

Steps = Annotated[int, Field(ge=1, le=MAX_STEP, strict=True)]

MAX_DEADLINE_S = 7 * 24 * 3600.0
MAX_AGENT_CHANGES = 1000

Proposable = Annotated[
    SetLearningRate
    | SetKnobs
    | SetSchedule
    | Freeze
    | Unfreeze
    | ResetParameters
    | SkipSamples
    | SetMixture
    | AddShards
    | RunAction
    | Pause
    | Resume
    | Stop
    | Evaluate
    | SaveCheckpoint
    | Rollback,
    Field(discriminator="kind"),
]
"""Intents that may be proposed."""


class MixingSettings(Message):
    """Settings of a policy that sets the weights of sources.

    floor: smallest share of a source, unless there are more sources than that leaves room for.
    least_batches: batches that held a sample of a source, before `ado` and `odm` give it more than the floor.
    fit_every_steps: steps from one fit of the learning curves to the next.
    """

    floor: float = Field(default=0.01, gt=0, le=0.5, allow_inf_nan=False)
    least_batches: Annotated[int, Field(ge=1, le=10**6, strict=True)] = 200
    fit_every_steps: Steps = 1000


class AgentSettings(Message):
    """Settings of a run's agent. What it costs, and which model it asks, is set on the server only.

    policy: `auto` (the server's model, else the guarded rule), `model`, or the name of a rule.
    action_space: what may be proposed for the learning rate and the run's course; `grants` come on top of it.
    every_steps: steps between two looks; with `adaptive`, rarer at a healthy run and more often at a doubtful one.
        A policy of mixtures looks every 50 steps, unless this is given, and always at the same interval.
    max_changes: of one run; 1000 unless given, for a policy of mixtures, which makes one at most looks.
    max_factor: a change of the learning rate by more than this factor is of high risk.
    deadline_s, default: seconds that a person has to answer a proposal, and what happens then.
    trial_steps: a change that would be made is first tried for so many steps, on a branch, and adopted only if the
        evaluation is better than without it; the run trains these steps twice. None: it is made without a trial.
    fallback: what is done if the model gives no decision.
    mixing: of a policy of mixtures; scaled down for runs that are shorter than some thousand steps.
    """

    policy: Name = "auto"
    mode: AgentMode = "guarded"
    action_space: ActionSpace = "factors"
    every_steps: Steps = 25
    adaptive: bool = True
    fallback: Literal["keep", "rule"] = "keep"
    max_decisions: Annotated[int, Field(ge=1, le=10**6, strict=True)] = 1000
    max_changes: Annotated[int, Field(ge=0, le=MAX_AGENT_CHANGES, strict=True)] = 40
    cool_down_steps: Annotated[int, Field(ge=0, le=MAX_STEP, strict=True)] = 20
    min_lr: float = Field(default=1e-6, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)
    max_lr: float = Field(default=1e-2, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)
    max_factor: float = Field(default=2.0, ge=1, le=MAX_FACTOR, allow_inf_nan=False)
    deadline_s: float = Field(default=900.0, gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)
    default: Literal["reject", "approve"] = "reject"
    second_opinion: bool = True
    trial_steps: Steps | None = None
    grants: Grants = NO_GRANTS
    mixing: MixingSettings = MixingSettings()

    @model_validator(mode="before")
    @classmethod
    def _mixtures_change_often(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("policy") not in MIXTURE_POLICIES:
            return given
        return {"every_steps": MIXTURE_EVERY_STEPS, "max_changes": MAX_AGENT_CHANGES} | given

    @model_validator(mode="after")
    def _min_lr_is_below_max_lr(self) -> "AgentSettings":
        if self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr {self.min_lr:g} is not below max_lr {self.max_lr:g}")
        return self


def reason_against_policy(settings: AgentSettings) -> str | None:
    """Return why no agent can be started with this policy, or None."""
    known = settings.policy in POLICIES
    return None if known else f"there is no policy {settings.policy!r}; there are {', '.join(POLICIES)}"


class StartAgent(ServerIntent):
    """Start the run's agent, one per run. The gateway keeps it running until it is stopped or the run has ended."""

    kind: Literal["start_agent"] = "start_agent"
    settings: AgentSettings = AgentSettings()

    def describe(self) -> str:
        return f"start the agent ({self.settings.policy}, {self.settings.mode})"


class StopAgent(ServerIntent):
    """Stop the run's agent. Its open proposals stay and can be answered."""

    kind: Literal["stop_agent"] = "stop_agent"

    def describe(self) -> str:
        return "stop the agent"


class Propose(ServerIntent):
    """Propose a command, with its reason. It is made at once or answered by a person, see `AgentMode`.

    step: the one that it speaks of: that of the numbers that it was checked against.
    decision: which decision of the agent it is, since the agent was started; those to keep count, too.
    """

    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["propose"] = "propose"
    intent: Proposable
    step: Annotated[int, Field(ge=0, le=MAX_STEP, strict=True)] | None = None
    decision: Steps | None = None

    def describe(self) -> str:
        return f"propose: {self.intent.describe()}"

    def parts(self) -> tuple[BaseIntent, ...]:
        return (self, *self.intent.parts())


class WithdrawProposal(ServerIntent):
    """Withdraw a proposal of one's own that nobody has answered."""

    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["withdraw_proposal"] = "withdraw_proposal"
    proposal: UUID

    def describe(self) -> str:
        return f"withdraw proposal {self.proposal}"


class AnswerProposal(ServerIntent):
    """Answer a proposal: approve it, reject it, or approve it edited: with `intent` in place of its own."""

    kind: Literal["answer_proposal"] = "answer_proposal"
    proposal: UUID
    approve: bool
    intent: Proposable | None = None
    note: str | None = Field(default=None, max_length=MAX_NOTE_CHARS)

    @model_validator(mode="after")
    def _a_rejection_changes_nothing(self) -> "AnswerProposal":
        if self.intent is not None and not self.approve:
            raise ValueError("a rejection takes no 'intent'; approve it with the edited intent, or reject it")
        return self

    def describe(self) -> str:
        if not self.approve:
            return f"reject proposal {self.proposal}"
        edited = f", edited: {self.intent.describe()}" if self.intent is not None else ""
        return f"approve proposal {self.proposal}{edited}"


class NoteEffect(ServerIntent):
    """Note the measured effect of an applied command: a metric before and after it, over `steps` steps each.

    None: it was not a finite number.
    """

    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["note_effect"] = "note_effect"
    command: UUID
    metric: Name
    before: Finite | None = None
    after: Finite | None = None
    steps: Steps
    judgement: Literal["better", "worse", "unclear"]

    @field_validator("metric")
    @classmethod
    def _is_one_line(cls, metric: Any) -> Any:
        if not metric.isprintable():
            raise ValueError("the metric's name is not one line of printable characters")
        return metric

    def describe(self) -> str:
        before, after = ("not finite" if value is None else f"{value:g}" for value in (self.before, self.after))
        return f"effect of {self.command}: {self.metric} {before} -> {after}, {self.judgement}"
