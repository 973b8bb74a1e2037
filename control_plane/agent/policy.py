"""What the autopilot may do, and the gate that everything it proposes must pass.

The whole of its power is one enum, unless its operator grants more (see `powers`). Whoever proposes (a rule, a model,
a model that was talked into something) hands in a `Decision`; `decide` turns it into one `SetLearningRate` with a
factor of 2 or 1/2, or into nothing, and says why. No text can widen that, because no text is looked at here.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from control_plane.core.model.commands import MAX_LEARNING_RATE, Intent, SetLearningRate
from control_plane.core.model.errors import Invalid

AUTOPILOT = "autopilot ("
"""How the reason of every autopilot's command begins; its budget is counted by it, see `history`."""

MAX_EXPLANATION_CHARS = 300
"""Of a proposer's own words; with the autopilot's name in front they stay below the limit of a command's reason."""


def is_number(value: Any) -> bool:
    """Whether this is a finite number, and not one of the whole numbers that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class Action(StrEnum):
    """Everything that the autopilot can answer by itself."""

    DOUBLE = "double"
    HALVE = "halve"
    KEEP = "keep"


FACTORS = {Action.DOUBLE: 2.0, Action.HALVE: 0.5}


@dataclass(frozen=True, slots=True)
class Decision:
    """What was proposed, and the proposer's sentence (untrusted: it is only ever shown)."""

    action: Action
    reason: str

    @property
    def what(self) -> str:
        """The proposal in a word."""
        return self.action.value


@dataclass(frozen=True, slots=True)
class KnobSeen:
    """A knob as the run has it: its live value (one per parameter group, if `per_group`), its type and its bounds."""

    value: Any
    kind: str = "number"
    per_group: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    changed_at: int | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class ActionSeen:
    """An action of the script: its arguments' types, those that must be given, and when it was last carried out."""

    types: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    changed_at: int | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """A run in numbers: the only thing that a proposer is shown.

    `losses` are (step, loss), oldest first, and may be NaN or infinite. `lr` holds one live value per parameter group.
    `changed_at` is the step at which anyone last changed the learning rate; `changes` counts those of autopilots, over
    the whole run (see `history`).
    `pending` says that a change is accepted and not yet settled.
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
    """The highest learning rate that this run has had, by its journal and its measurements."""
    # Only what the operator has granted, by name.
    knobs: Mapping[str, KnobSeen] = field(default_factory=dict)
    actions: Mapping[str, ActionSeen] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no proposal may exceed, whoever makes it. Raises `Invalid` if the bounds contradict each other.

    `min_lr`: below it a run stands still and nobody notices. `max_lr`: above it AdamW trains no transformer; a run that
    is above may only go down. `max_drop`: nor may it go further down than to this fraction of the highest learning
    rate that the run has had: on a plateau each halving helps a little, until the run stands still.
    `cooldown_steps`: the loss needs that long to show what the last change did. `max_changes`: a run that needs more
    than this is not steered but hunted, and a person should look; a restart of the autopilot does not begin anew.
    `max_age_steps`: a decision about a run that has since gone on for longer is about another run.
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
                f"the autopilot's learning rates go from {self.min_lr:g} to {self.max_lr:g}; "
                f"allowed is 0 < min_lr < max_lr <= {MAX_LEARNING_RATE:g}"
            )
        if not (math.isfinite(self.max_drop) and self.max_drop >= 1):
            raise Invalid(f"max_drop is {self.max_drop:g}; it is a finite number of at least 1")
        for name in ("cooldown_steps", "max_changes", "max_age_steps"):
            if getattr(self, name) < 0:
                raise Invalid(f"{name} is {getattr(self, name)}; it counts from 0")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the gate made of a proposal: a command or none, and the sentence that says why."""

    intent: Intent | None
    sentence: str


def decide(decision: Decision, seen: Observation, now: Observation, bounds: Bounds) -> Ruling:
    """The gate. `seen` is what the proposer looked at, `now` is the run when the answer came."""
    if decision.action is Action.KEEP:
        return Ruling(None, "kept")
    factor = FACTORS[decision.action]
    obstacle = stale(seen, now, bounds) or too_soon(now, bounds) or rates_out_of_bounds(now, bounds, factor=factor)
    if obstacle:
        return Ruling(None, f"not done: {obstacle}")
    # "keep" multiplies what is left of the schedule, so that a decay still ends where a decay should: near zero.
    return Ruling(SetLearningRate(factor=factor, schedule="keep"), f"lr x {factor:g}")


def stale(seen: Observation, now: Observation, bounds: Bounds) -> str | None:
    """Why a proposal about `seen` is none about `now`, or None."""
    return gone_on(seen, now, bounds) or (
        "the learning rate was changed since it was looked at" if seen.changed_at != now.changed_at else None
    )


def gone_on(seen: Observation, now: Observation, bounds: Bounds) -> str | None:
    """Why what was seen is another stretch of training, or None."""
    if seen.generation != now.generation or now.step < seen.step:
        return "the run was restarted or rolled back since it was looked at"
    if now.step - seen.step > bounds.max_age_steps:
        return f"the answer is about step {seen.step}, and the run is at step {now.step}"
    return None


def too_many(now: Observation, bounds: Bounds) -> str | None:
    """Why there is no change left to make, or None."""
    if now.changes >= bounds.max_changes:
        return f"the autopilot has made all of its {bounds.max_changes} changes; a person should look"
    return None


def too_soon(now: Observation, bounds: Bounds) -> str | None:
    """Why the learning rate cannot be changed now, or None."""
    if now.pending:
        return "an earlier change of the learning rate is not settled yet"
    if (obstacle := too_many(now, bounds)) is not None:
        return obstacle
    if now.changed_at is not None and now.step - now.changed_at < bounds.cooldown_steps:
        return (
            f"the last change was {now.step - now.changed_at} steps ago; "
            f"it is given {bounds.cooldown_steps} steps to show its effect"
        )
    return None


def rates_out_of_bounds(
    now: Observation, bounds: Bounds, factor: float | None = None, value: float | None = None
) -> str | None:
    """Why the learning rates may not be multiplied by `factor`, or set to `value`, or None."""
    live = [lr for lr in now.lr if lr != 0]  # a frozen group, or the first step of a warm-up: no factor moves it
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
    # A schedule may end near zero; what counts is how far the autopilot has brought the run down from its best.
    if lowest < now.peak_lr / bounds.max_drop:
        return f"it would set {lowest:g}, less than a {bounds.max_drop:g}th of the highest rate seen, {now.peak_lr:g}"
    return None


def _any_above(some: Sequence[float], others: Sequence[float]) -> bool:
    return any(one > other for one, other in zip(some, others, strict=True))


def printable(words: str, limit: int = MAX_EXPLANATION_CHARS) -> str:
    """A proposer's words as one short line. They are untrusted: what a terminal would obey is dropped."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def explain(pilot: str, reason: str) -> str:
    """The reason for the journal: who decided, and the proposer's words as one short line of printable text.

    A model's words are untrusted: control characters (a terminal would obey them) and marks that reverse the
    direction of text are dropped.
    """
    return f"{AUTOPILOT}{pilot}): {printable(reason) or 'no reason given'}"
