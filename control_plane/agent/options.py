"""Options of the autopilot, and its part of the gateway's client."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol
from uuid import UUID

from control_plane.agent.course import KINDS
from control_plane.agent.model import DEFAULT_TIMEOUT_S
from control_plane.agent.policy import AgentBounds
from control_plane.agent.rules.guarded import Patience
from control_plane.api.messages import CommandView, Measurements, Receipt, Snapshot
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.agent import AgentSettings, MixingSettings
from control_plane.core.model.intents.grants import NO_GRANTS, Grants
from control_plane.core.model.records import Entry

MAX_FACTOR = 10.0
"""Largest factor on the learning rate in the full action space: more is a typo, or a run that should begin anew."""


class AgentClient(Protocol):
    """Client interface: the part of `client.SteerwayClient` that is used. May raise `Unavailable`, `Refused`."""

    def snapshot(self, run: str) -> Snapshot:
        """Return the current state of the run."""
        ...

    def metrics(self, run: str, after: int = 0, limit: int = ..., names: tuple[str, ...] = ()) -> Measurements:
        """Return metric points after the cursor `after`."""
        ...

    def journal(self, run: str, after: int = 0, limit: int = ...) -> list[Entry]:
        """Return journal entries after the entry `after`."""
        ...

    def submit(
        self,
        run: str,
        intent: Intent,
        *,
        reason: str | None = None,
        based_on_seq: int | None = None,
        uuid: UUID | None = None,
    ) -> Receipt:
        """Submit a command durably. Idempotent by uuid.

        Raises `Conflict` if the run has changed since the journal entry `based_on_seq`.
        """
        ...

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        """Wait for a command's outcome. Raises `Unavailable` if it takes longer than `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options of the autopilot. Raises `Invalid` for inconsistent values.

    `policy`: "auto" asks a model if a key is set and follows the rule otherwise; "model", "rule", or a rule's name.
    `fallback`: what to do if the model gives no decision. `max_decisions` bounds the cost of a model: each decision is
    at most two calls, three with a second opinion. `settings`: those of the run's started agent, whose changes are
    proposals; None: commands are sent directly.
    """

    every_steps: int = 25
    window_points: int = 200
    bounds: AgentBounds = field(default_factory=AgentBounds)
    grants: Grants = NO_GRANTS
    policy: str = "auto"
    fallback: Literal["keep", "rule"] = "keep"
    max_decisions: int = 1000
    dry_run: bool = False
    poll_s: float = 1.0
    settle_timeout_s: float = 60.0
    model_timeout_s: float = DEFAULT_TIMEOUT_S
    patience: Patience = field(default_factory=Patience)
    adaptive: bool = False
    second_opinion: bool = False
    settings: AgentSettings | None = None
    mixing: MixingSettings = field(default_factory=MixingSettings)

    def __post_init__(self) -> None:
        if self.fallback not in ("keep", "rule"):
            raise Invalid(f"fallback is {self.fallback!r}; allowed are keep and rule")
        for name in ("every_steps", "window_points", "max_decisions", "poll_s", "settle_timeout_s", "model_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise Invalid(f"{name} is {value:g}; it must be greater than 0")

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of commands on the run's course that may be proposed."""
        return frozenset(KINDS) if self.settings is not None and self.settings.action_space == "full" else frozenset()

    @property
    def may_mix(self) -> bool:
        """Return whether a model may set the weights of sources, where the run's limits grant them to agents."""
        return self.settings is not None and self.settings.action_space != "published"

    @property
    def factor(self) -> float | None:
        """Largest factor of one change of the learning rate; None: only double and halve."""
        if self.settings is None or self.settings.action_space == "published":
            return None
        return MAX_FACTOR if self.settings.action_space == "full" else self.settings.max_factor


def options_of(settings: AgentSettings, base: AgentOptions | None = None) -> AgentOptions:
    """Return the options of an agent that was started with these settings; the rest is of `base`."""
    bounds = AgentBounds(
        min_lr=settings.min_lr,
        max_lr=settings.max_lr,
        cooldown_steps=settings.cool_down_steps,
        max_changes=settings.max_changes,
    )
    return replace(
        base or AgentOptions(),
        every_steps=settings.every_steps,
        bounds=bounds,
        grants=settings.grants,
        policy=settings.policy,
        fallback=settings.fallback,
        max_decisions=settings.max_decisions,
        adaptive=settings.adaptive,
        second_opinion=settings.second_opinion,
        settings=settings,
        mixing=settings.mixing,
    )


def adopted(options: AgentOptions, settings: AgentSettings) -> AgentOptions:
    """Return the options of an autopilot in the foreground on a run whose agent is started, with the agent's bounds.

    Policy, cadence and number of decisions remain those of the foreground.
    """
    return replace(
        options_of(settings, options),
        policy=options.policy,
        every_steps=options.every_steps,
        adaptive=options.adaptive,
        fallback=options.fallback,
        max_decisions=options.max_decisions,
    )
