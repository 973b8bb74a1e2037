"""GreedyLR as Transformers 5.23 ships it, and as it was published (Subramanian et al., arXiv 2512.14527).

Transformers' class `GreedyLR` (`lr_scheduler_type="greedy"`) is stepped by its Trainer at evaluations only, with the
evaluation's loss. The paper steps the same algorithm at every step, with the mean of the last training losses. Both are
here by one class, equal to the installed one: a test compares their learning rates on random series of losses.
"""

import math
from dataclasses import dataclass
from typing import Literal

from control_plane.agent.grants import Proposal
from control_plane.agent.policy import Observation
from control_plane.agent.rules.rule import SAME, Cursor, keep, rate_of, scale_rate
from control_plane.core.model.intent_base import LEARNING_RATE


@dataclass(frozen=True, slots=True)
class GreedyOptions:
    """Options of GreedyLR, by their names and defaults in Transformers. `smooth`: by a mean over `window_size`."""

    factor: float = 0.95
    patience: int = 10
    threshold: float = 1e-6
    relative: bool = False
    cooldown: int = 0
    warmup: int = 0
    min_lr: float = 1e-3
    max_lr: float = 1.0
    eps: float = 1e-8
    smooth: bool = False
    window_size: int = 50
    reset_start: int = 500


SHIPPED = GreedyOptions()
PUBLISHED = GreedyOptions(smooth=True, min_lr=1e-6)


class Greedy:
    """GreedyLR of one learning rate."""

    def __init__(self, options: GreedyOptions, first_lr: float) -> None:
        self.options, self.first_lr, self.lr = options, first_lr, first_lr
        self.best = math.inf
        self.good = self.bad = self.cooling = self.warming = 0
        self.left_at_min = options.reset_start
        self.window: list[float] = []
        self.sum = 0.0

    def step(self, loss: float) -> float:
        """Take one value of the loss, and return the learning rate."""
        options = self.options
        current = self._smoothed(loss) if options.smooth else loss
        if self.cooling > 0 or self.warming > 0:
            if self.cooling > 0:
                self.cooling -= 1
            else:
                self.warming -= 1
            self.good = self.bad = 0
            return self.lr
        limit = self.best * (1.0 - options.threshold) if options.relative else self.best - options.threshold
        if current < limit:
            self.best, self.bad, self.good = current, 0, self.good + 1
        else:
            self.bad, self.good = self.bad + 1, 0
        if self.good > options.patience:
            self._raise()
        elif self.bad > options.patience:
            self._lower()
        return self.lr

    def _smoothed(self, loss: float) -> float:
        self.window.append(loss)
        self.sum += loss
        if len(self.window) > self.options.window_size:
            self.sum -= self.window.pop(0)
        return self.sum / len(self.window)

    def _raise(self) -> None:
        new = min(self.lr / self.options.factor, self.options.max_lr)
        if new - self.lr > self.options.eps:
            self.lr = new
        self.left_at_min = self.options.reset_start
        self.warming, self.good = self.options.warmup, 0

    def _lower(self) -> None:
        new = max(self.lr * self.options.factor, self.options.min_lr)
        if self.lr - new > self.options.eps:
            self.lr = new
        if self.lr <= self.options.min_lr * (1 + SAME):
            self.left_at_min -= 1
            if self.left_at_min <= 0:
                self._reset()
        self.cooling, self.bad = self.options.cooldown, 0

    def _reset(self) -> None:
        self.lr, self.best = self.first_lr, math.inf
        self.good = self.bad = self.cooling = self.warming = 0
        self.left_at_min = self.options.reset_start
        self.window, self.sum = [], 0.0


class GreedyRule:
    """GreedyLR as a rule: it takes each new loss, or each new evaluation, and proposes where it arrives.

    Of several parameter groups it watches the first; the others keep their ratio to it.
    """

    needs: tuple[str, ...] = (LEARNING_RATE,)

    def __init__(self, name: str, options: GreedyOptions, source: Literal["losses", "evals"]) -> None:
        self.name, self.options, self.source = name, options, source
        self._cursor = Cursor()
        self._greedy: Greedy | None = None

    def look(self, seen: Observation) -> Proposal:
        """Step once for each new value."""
        now = rate_of(seen)
        if now is None:
            return keep("no learning rate is known")
        if self._cursor.is_anew(seen) or self._greedy is None:
            self._greedy = Greedy(self.options, now)
        self._greedy.lr = now  # what was refused, or what somebody else has set
        new = self._cursor.take(seen, seen.losses if self.source == "losses" else seen.evals)
        wanted = now
        for _, value in new:
            wanted = self._greedy.step(value)
        greedy = self._greedy
        return scale_rate(now, wanted, f"{len(new)} new values; best {greedy.best:.4g}, {greedy.bad} bad in a row")
