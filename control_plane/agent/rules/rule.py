"""Interface of a rule, and what the rules share: new points of a series, and a proposal to move a learning rate.

A rule is a plain object: its state is plain data inside (it can be pickled), it reads no clock and no file, and it
begins anew when the run was restarted or rolled back. Its proposals are checked as a model's are, see `grants.decide`;
one that was refused changes nothing, and the rule sees that in its next observation.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from control_plane.agent.grants import Proposal, Scale
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.core.model.intent_base import LEARNING_RATE

SAME = 1e-9
"""Relative difference below which two learning rates are the same."""

Series = tuple[tuple[int, float], ...]


class Rule(Protocol):
    """Rule of an autopilot: proposes from an observation.

    `needs` names the knobs that the autopilot's grants have to hold, so that the rule can act at all.
    """

    name: str
    needs: tuple[str, ...]

    def look(self, seen: Observation) -> Proposal:
        """Return a proposal; `keep` if there is nothing to change."""
        ...


class Cursor:
    """Place of a rule in a run's series. Tells when the run was restarted or rolled back."""

    def __init__(self) -> None:
        self.step, self.generation = -1, 0

    def is_anew(self, seen: Observation) -> bool:
        """Return whether the rule's state is of another generation, or of steps that are no longer part of the run."""
        if self.step >= 0 and seen.generation == self.generation and seen.step >= self.step:
            return False
        self.step, self.generation = -1, seen.generation
        return True

    def take(self, seen: Observation, series: Series) -> list[tuple[int, float]]:
        """Return the points of a series since the last call, and move to the observation's step."""
        new = [(step, value) for step, value in series if step > self.step]
        self.step = seen.step
        return new


def keep(reason: str) -> Decision:
    """Return the proposal to change nothing."""
    return Decision(AgentAction.KEEP, reason)


def rate_of(seen: Observation) -> float | None:
    """Return the learning rate of the first group that trains, or None."""
    return next((lr for lr in seen.lr if math.isfinite(lr) and lr > 0), None)


def scale_rate(now: float, wanted: float, reason: str) -> Proposal:
    """Return the proposal to multiply all learning rates so that `now` becomes `wanted`."""
    if not (math.isfinite(wanted) and wanted > 0) or abs(wanted - now) <= SAME * now:
        return keep(reason)
    return Scale(LEARNING_RATE, wanted / now, reason)


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are finite; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
