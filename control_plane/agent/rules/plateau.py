"""Reduce on plateau, equal to torch's `ReduceLROnPlateau`: lower the rate when evaluations have stopped improving."""

import math
from dataclasses import dataclass
from typing import Literal

from control_plane.agent.grants import Proposal
from control_plane.agent.policy import Observation
from control_plane.agent.rules.rule import Cursor, keep, rate_of, scale_rate
from control_plane.core.model.intent_base import LEARNING_RATE


@dataclass(frozen=True, slots=True)
class PlateauOptions:
    """Options of reduce on plateau, by their names and defaults in torch; the threshold is relative."""

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8


class Plateau:
    """Reduce on plateau for one learning rate."""

    def __init__(self, options: PlateauOptions, lr: float) -> None:
        self.options, self.lr = options, lr
        self.best = math.inf
        self.bad = self.cooling = 0

    def step(self, loss: float) -> float:
        """Take one value of the loss, and return the learning rate."""
        if loss < self.best * (1.0 - self.options.threshold):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self.options.patience:
            new = max(self.lr * self.options.factor, self.options.min_lr)
            if self.lr - new > self.options.eps:
                self.lr = new
            self.cooling, self.bad = self.options.cooldown, 0
        return self.lr


class PlateauRule:
    """Reduce on plateau as a rule, stepped at each new evaluation, or at each new loss."""

    name = "plateau"
    needs: tuple[str, ...] = (LEARNING_RATE,)

    def __init__(
        self, options: PlateauOptions = PlateauOptions(), source: Literal["losses", "evals"] = "evals"
    ) -> None:
        self.options, self.source = options, source
        self._cursor = Cursor()
        self._plateau: Plateau | None = None

    def look(self, seen: Observation) -> Proposal:
        """Step once for each new value."""
        now = rate_of(seen)
        if now is None:
            return keep("no learning rate is known")
        if self._cursor.is_anew(seen) or self._plateau is None:
            self._plateau = Plateau(self.options, now)
        self._plateau.lr = wanted = now
        new = self._cursor.take(seen, seen.losses if self.source == "losses" else seen.evals)
        for _, value in new:
            wanted = self._plateau.step(value)
        return scale_rate(
            now, wanted, f"best {self._plateau.best:.4g}, {self._plateau.bad} evaluations without a better"
        )
