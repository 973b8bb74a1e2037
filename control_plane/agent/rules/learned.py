"""Learned linear policy: double, halve or keep by the largest of three weighted sums of an observation's features.

The weights were learned from episodes (state, proposal, verdict, effect) of short runs; how, and on which seeds, stands
in their file. A learner draws from the policy instead, by softmax and a seed.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from control_plane.agent.grants import Proposal
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.agent.rules.rule import Cursor, keep, mean, rate_of
from control_plane.core.model.errors import Invalid
from control_plane.core.model.knobs import is_number

FEATURES = (
    "one",
    "fall of the loss since the last look",
    "the same, one look earlier",
    "distance above the best loss",
    "distance to the first loss",
    "share of losses that are not finite",
    "noise of the loss",
    "progress of the run",
    "learning rate, in doublings from the first one",
    "last change: up 1, down -1",
    "fall since the last look, signed by the last change",
    "the same, times progress",
)
ACTIONS = (AgentAction.DOUBLE, AgentAction.HALVE, AgentAction.KEEP)
PER_CENT = 20.0
"""Scale of relative differences of losses: 5 % is 1."""

MOST = 3.0
"""Largest feature: nothing that a run measures may overrule all else."""

Weights = tuple[tuple[float, ...], ...]


@dataclass(slots=True)
class _Memory:
    first_loss: float
    first_lr: float
    lr: float
    best: float = math.inf
    last: float = math.nan
    fall: float = 0.0
    change: float = 0.0


def weights_of(raw: Any) -> Weights:
    """Return the weights of a file's JSON. Raises `Invalid` if they are not of these features and actions."""
    rows = raw.get("weights") if isinstance(raw, dict) else None
    named = isinstance(raw, dict) and raw.get("features") == list(FEATURES) and raw.get("actions") == list(ACTIONS)
    if not named or not isinstance(rows, list) or len(rows) != len(ACTIONS):
        raise Invalid("the weights of the learned policy are not of this version's features and actions")
    if not all(isinstance(row, list) and len(row) == len(FEATURES) and all(map(is_number, row)) for row in rows):
        raise Invalid(f"the weights of the learned policy are not {len(ACTIONS)} rows of {len(FEATURES)} numbers")
    return tuple(tuple(map(float, row)) for row in rows)


class LearnedRule:
    """Learned linear policy as a rule. `seed`: draw by softmax instead of taking the largest sum."""

    name = "learned"
    needs: tuple[str, ...] = ()

    def __init__(self, weights: Weights, seed: int | None = None) -> None:
        self.weights, self.seed = weights, seed
        self.features: tuple[float, ...] = ()
        self._cursor = Cursor()
        self._memory: _Memory | None = None

    def look(self, seen: Observation) -> Proposal:
        """Compute the features, and return the action with the largest sum."""
        if self._cursor.is_anew(seen):
            self._memory = None
        losses = [loss for _, loss in self._cursor.take(seen, seen.losses)]
        now = rate_of(seen)
        if not losses or now is None:
            self.features = ()
            return keep("no new losses")
        self.features = self._features(seen, losses, now)
        sums = [sum(w * x for w, x in zip(row, self.features, strict=True)) for row in self.weights]
        if self.seed is not None:
            most = max(sums)
            odds = [math.exp(each - most) for each in sums]
            action = random.Random(f"{self.seed}/{seen.generation}/{seen.step}").choices(ACTIONS, odds)[0]
        else:
            action = ACTIONS[max(range(len(sums)), key=sums.__getitem__)]
        return Decision(
            action, "weighted sums " + ", ".join(f"{a} {s:.3g}" for a, s in zip(ACTIONS, sums, strict=True))
        )

    def _features(self, seen: Observation, losses: Sequence[float], now: float) -> tuple[float, ...]:
        if self._memory is None:
            self._memory = _Memory(losses[0] if math.isfinite(losses[0]) else 1.0, now, now)
        memory, loss = self._memory, mean(losses)
        if abs(now - memory.lr) > 1e-6 * now:
            memory.change = 1.0 if now > memory.lr else -1.0
        finite = math.isfinite(loss)
        fall = _clipped(_relative(memory.last, loss) if finite else -MOST) if not math.isnan(memory.last) else 0.0
        progress = seen.step / max(1, seen.total_steps)
        spread = [abs(a - b) for a, b in pairwise(losses) if math.isfinite(a - b)]
        noise = sum(spread) / len(spread) / max(abs(loss), 1e-12) if spread and finite else 0.0
        features = (
            1.0,
            fall,
            memory.fall,
            _clipped(-_relative(memory.best, loss) if finite and memory.best < math.inf else 0.0 if finite else MOST),
            _clipped(_relative(memory.first_loss, loss) / 4 if finite else -MOST),
            sum(not math.isfinite(each) for each in losses) / len(losses),
            _clipped(PER_CENT * noise),
            progress,
            _clipped(math.log2(now / memory.first_lr) / 3),
            memory.change,
            fall * memory.change,
            fall * progress,
        )
        memory.fall, memory.lr = fall, now
        if finite:
            memory.last, memory.best = loss, min(memory.best, loss)
        return features


def _relative(before: float, after: float) -> float:
    """Return the fall from one loss to another, relative and scaled."""
    return PER_CENT * (before - after) / max(abs(before), 1e-12)


def _clipped(value: float) -> float:
    return max(-MOST, min(MOST, value))
