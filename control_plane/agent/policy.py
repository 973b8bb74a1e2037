"""Policy of the autopilot: its possible actions, its bounds, and the check of every proposal against them.

Its actions are one enum, unless its operator grants more (see `grants`). A proposer (a rule, a model, a model under
prompt injection) returns a `Decision`; `decide` turns it into one `SetLearningRate` with a factor of 2 or 1/2, or into
nothing, with the reason. No text can extend that, because no text is interpreted here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from control_plane.agent.mixing import SourceSeen
from control_plane.core.model.commands import MAX_LEARNING_RATE, Intent, SetLearningRate
from control_plane.core.model.errors import Invalid
from control_plane.core.model.knobs import KnobSpec, KnobValue
from control_plane.core.model.limits import Limit

AUTOPILOT = "autopilot ("
"""Prefix of the reason of every autopilot command; the budget is counted by it, see `history`."""

MAX_EXPLANATION_CHARS = 300
"""Limit of a proposer's explanation; with the autopilot's name it stays below the limit of a command's reason."""


class AgentAction(StrEnum):
    """Actions that the autopilot may take without further grants."""

    DOUBLE = "double"
    HALVE = "halve"
    KEEP = "keep"


FACTORS = {AgentAction.DOUBLE: 2.0, AgentAction.HALVE: 0.5}


@dataclass(frozen=True, slots=True)
class Decision:
    """Proposed action, and the proposer's explanation (untrusted: it is only displayed)."""

    action: AgentAction
    reason: str

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return self.action.value


@dataclass(frozen=True, slots=True)
class KnobSeen:
    """Observed knob of a run: its specification and its live value (one per parameter group, if `spec.per_group`)."""

    spec: KnobSpec
    value: KnobValue
    changed_at: int | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class ActionSeen:
    """Observed action of a script: its arguments' types, the required ones, and the step at which it last ran."""

    types: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    changed_at: int | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """Observed open alert: its kind and level (words of ours), and its numbers. No sentence, no subject."""

    kind: str
    level: str
    step: int
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class PastSeen:
    """Past intervention, or a proposal of one: at which step, what in words of ours and numbers, by whom, its end.

    verdict: `applied`, or how a proposal was closed. judgement: of the noted effect; empty if none was noted.
    """

    step: int
    what: str
    by: str
    verdict: str
    before: float | None = None
    after: float | None = None
    judgement: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    """Observed checkpoint that a rollback may be proposed to. A model names it by its step; its label is not shown."""

    name: str
    step: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """Observation of a run, in numbers: the proposer's only input.

    `losses` are (step, loss), oldest first, and may be NaN or infinite. `lr` holds one live value per parameter group.
    `changed_at` is the step at which anyone last changed the learning rate; `changes` counts those of autopilots, over
    the whole run (see `history`).
    `pending`: a change is accepted but has no outcome yet.
    """

    step: int
    total_steps: int
    losses: tuple[tuple[int, float], ...]
    lr: tuple[float, ...]
    eval_loss: float | None = None
    generation: int = 0
    changed_at: int | None = None
    changes: int = 0
    pending: bool = False
    peak_lr: float = 0.0
    """Highest learning rate that this run has had, by its journal and its measurements."""
    # Only what the operator has granted, by name.
    knobs: Mapping[str, KnobSeen] = field(default_factory=dict)
    actions: Mapping[str, ActionSeen] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)
    # (step, value), oldest first, as `losses`; empty where a run does not measure it.
    evals: tuple[tuple[int, float], ...] = ()
    grad_norms: tuple[tuple[int, float], ...] = ()
    config: Mapping[str, float | str] = field(default_factory=dict)
    """Numbers of the run's configuration, and names from our own lists of optimizers and schedules."""
    signs: Mapping[str, float] = field(default_factory=dict)
    alerts: tuple[AlertSeen, ...] = ()
    past: tuple[PastSeen, ...] = ()
    checkpoints: tuple[CheckpointSeen, ...] = ()
    kinds: frozenset[str] = frozenset()
    """Kinds of commands on the run's course that may be proposed, see `course`."""
    course_at: Mapping[str, int] = field(default_factory=dict)
    """Step at which a command of each kind was last applied, or last declined as a proposal."""
    factor: float | None = None
    """Largest factor of one change of the learning rate; None: only 2 and 1/2, unless granted."""
    mixture: Mapping[str, SourceSeen] = field(default_factory=dict)
    """Sources of the run's data: for a rule that sets their weights all, for a model those that it may set."""
    weight_limits: Mapping[str, Limit] = field(default_factory=dict)
    """Limits of the sources whose weights a model may set; empty: it may set none, or a rule proposes."""
    mixed_at: int | None = None
    """Step at which anybody last set weights."""
    is_mixing: bool = False
    """Whether a change of the sources' weights is accepted and has no outcome yet."""


@dataclass(frozen=True, slots=True)
class AgentBounds:
    """Bounds on every proposal, whoever makes it. Raises `Invalid` if they contradict each other.

    `min_lr`: below it a run stalls unnoticed. `max_lr`: above it AdamW trains no transformer; a run that is above may
    only go down. `max_drop`: the learning rate may not go below this fraction of the highest one that the run has had:
    on a plateau each halving helps a little, until the run stalls. `cooldown_steps`: the loss needs this long to show
    the effect of the last change. `max_changes`: a run that needs more is oscillating, and a person should look; a
    restart of the autopilot does not reset the count. `max_age_steps`: an older decision is stale.
    """

    min_lr: float = 1e-6
    max_lr: float = 1e-2
    max_drop: float = 16.0
    cooldown_steps: int = 20
    max_changes: int = 40
    max_age_steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr <= MAX_LEARNING_RATE:
            raise Invalid(
                f"the autopilot's bounds are min_lr {self.min_lr:g} and max_lr {self.max_lr:g}; "
                f"required is 0 < min_lr < max_lr <= {MAX_LEARNING_RATE:g}"
            )
        if not (math.isfinite(self.max_drop) and self.max_drop >= 1):
            raise Invalid(f"max_drop is {self.max_drop:g}; it must be a finite number of at least 1")
        for name in ("cooldown_steps", "max_changes", "max_age_steps"):
            if getattr(self, name) < 0:
                raise Invalid(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, slots=True)
class Ruling:
    """Result of checking a proposal: a command or None, and the reason."""

    intent: Intent | None
    sentence: str


def decide(decision: Decision, seen: Observation, now: Observation, bounds: AgentBounds) -> Ruling:
    """Check a decision against the bounds. `seen`: what the proposer observed; `now`: the run when it answered."""
    if decision.action is AgentAction.KEEP:
        return Ruling(None, "kept")
    factor = FACTORS[decision.action]
    reason = stale(seen, now, bounds) or too_soon(now, bounds) or rates_out_of_bounds(now, bounds, factor=factor)
    if reason:
        return Ruling(None, f"not sent: {reason}")
    # "keep" scales the rest of the schedule, so that a decay still ends near zero.
    return Ruling(SetLearningRate(factor=factor, schedule="keep"), f"lr x {factor:g}")


def stale(seen: Observation, now: Observation, bounds: AgentBounds) -> str | None:
    """Return why a proposal about `seen` is stale at `now`, or None."""
    return gone_on(seen, now, bounds) or (
        "the learning rate has changed since it was observed" if seen.changed_at != now.changed_at else None
    )


def gone_on(seen: Observation, now: Observation, bounds: AgentBounds) -> str | None:
    """Return why `seen` is too old or of another generation, or None."""
    if seen.generation != now.generation or now.step < seen.step:
        return "the run was restarted or rolled back since it was observed"
    if now.step - seen.step > bounds.max_age_steps:
        return f"the decision is about step {seen.step}, but the run is at step {now.step}"
    return None


def too_many(now: Observation, bounds: AgentBounds) -> str | None:
    """Return why the budget of changes is used up, or None."""
    if now.changes >= bounds.max_changes:
        return f"the autopilot has used all of its {bounds.max_changes} changes; a person should look at the run"
    return None


def too_soon(now: Observation, bounds: AgentBounds) -> str | None:
    """Return why the learning rate cannot be changed now, or None."""
    if now.pending:
        return "an earlier change of the learning rate is still pending"
    if (reason := too_many(now, bounds)) is not None:
        return reason
    if now.changed_at is not None and now.step - now.changed_at < bounds.cooldown_steps:
        return (
            f"cool-down: the last change was {now.step - now.changed_at} steps ago, and "
            f"{bounds.cooldown_steps} steps are required between changes"
        )
    return None


def rates_out_of_bounds(
    now: Observation, bounds: AgentBounds, factor: float | None = None, value: float | None = None
) -> str | None:
    """Return why the learning rates may not be multiplied by `factor` or set to `value`, or None."""
    live = [lr for lr in now.lr if lr != 0]  # 0: a frozen group, or the first step of a warm-up; no factor changes it
    if not live or not all(math.isfinite(lr) and lr > 0 for lr in live):
        return "no parameter group has a positive learning rate"
    becomes = [value if value is not None else lr * (factor or 1.0) for lr in live]
    lowest, highest = min(becomes), max(becomes)
    if _any_above(becomes, live) and highest > bounds.max_lr:
        return f"it would set {highest:g}, above the autopilot's bound of {bounds.max_lr:g}"
    if not _any_above(live, becomes):
        return None
    if lowest < bounds.min_lr:
        return f"it would set {lowest:g}, below the autopilot's bound of {bounds.min_lr:g}"
    # A schedule may end near zero; what counts is how far the autopilot has lowered the rate from its peak.
    if lowest < now.peak_lr / bounds.max_drop:
        return f"it would set {lowest:g}, less than a {bounds.max_drop:g}th of the highest rate seen, {now.peak_lr:g}"
    return None


def _any_above(some: Sequence[float], others: Sequence[float]) -> bool:
    return any(one > other for one, other in zip(some, others, strict=True))


def printable(text: str, limit: int = MAX_EXPLANATION_CHARS) -> str:
    """Return untrusted text as one short line, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def explain(pilot: str, reason: str) -> str:
    """Return the reason for the journal: the proposer, and its explanation as one short line of printable text.

    A model's text is untrusted: control characters and marks that reverse the direction of text are dropped.
    """
    return f"{AUTOPILOT}{pilot}): {printable(reason) or 'no reason given'}"
