"""The probing rule: find the learning rate from below, hold it, halve it after a divergence, anneal it at the end.

    probe    from far below, the rate is raised look by look until the loss has begun to fall for good; the rate of the
             training is a multiple of that one. Whatever rate the run began with is only where the probe begins from
    hold     a loss that is not finite, or far above its best, lowers the rate at once
    anneal   in the last part of the run the rate falls to a small share, as a schedule would have it

The probe is the learning-rate range test (Smith, arXiv 1506.01186), turned round: it ends at the first clear fall
instead of the first rise, since a rise of the loss has ruined the weights. It takes the place of a warm-up, and it is
left out where an autopilot joins a run late.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from control_plane.agent.grants import Proposal
from control_plane.agent.policy import Observation
from control_plane.agent.rules.rule import Cursor, keep, mean, rate_of, scale_rate
from control_plane.core.model.intent_base import LEARNING_RATE


@dataclass(frozen=True, slots=True)
class ProbingOptions:
    """Options of the probing rule. Shares of progress are of the run's steps, shares of the loss of its first look's.

    up: factor of the rate from one look to the next while it probes.
    floor: the rate at which the probe begins, if the run's is above; `drop`: by this factor at once, at most.
    fall: share by which the loss has fallen when the probe ends.
    multiple: the rate of the training, as a multiple of the one at which the probe ended.
    blow_up, noise: a look is a divergence if its mean is above the best mean of `window` losses by this factor, and by
        this many times the mean difference of neighbouring losses.
    """

    up: float = 2.0
    floor: float = 1e-5
    drop: float = 1000.0
    fall: float = 0.1
    multiple: float = 8.0
    probe_until: float = 0.15
    anneal_from: float = 0.6
    anneal_to: float = 0.1
    blow_up: float = 1.15
    noise: float = 2.0
    window: int = 20
    down: float = 4.0


class Phase(StrEnum):
    """Phases of the rule."""

    PROBE = "probe"
    HOLD = "hold"
    ANNEAL = "anneal"


class ProbingRule:
    """The probing rule. Its proposals are factors of the learning rate."""

    name = "probing"
    needs: tuple[str, ...] = (LEARNING_RATE,)

    def __init__(self, options: ProbingOptions = ProbingOptions()) -> None:
        self.options = options
        self._cursor = Cursor()
        self._begin()

    def _begin(self) -> None:
        self.phase = Phase.PROBE
        self._first = math.nan
        self._best = math.inf
        self._recent: list[float] = []
        self._target: float | None = None
        self._top: float | None = None

    def look(self, seen: Observation) -> Proposal:
        """Take the new losses, and propose the rate of this phase."""
        if self._cursor.is_anew(seen):
            self._begin()
        losses = [loss for _, loss in self._cursor.take(seen, seen.losses)]
        now, progress = rate_of(seen), seen.step / max(1, seen.total_steps)
        if now is None:
            return keep("no learning rate is known")
        if self._target is None and self.phase is Phase.PROBE:  # before the first step, if it can be
            return self._join(now, progress)
        if not losses:
            return keep("no new losses")
        loss = mean(losses) if math.isfinite(losses[-1]) else math.nan
        if not math.isfinite(loss) or loss > self._limit():
            return self._lower(now, loss)
        self._recent = [*self._recent, *filter(math.isfinite, losses)][-self.options.window :]
        if len(self._recent) == self.options.window:
            self._best = min(self._best, mean(self._recent))
        if self.phase is Phase.PROBE:
            return self._probe(now, loss, progress)
        if progress >= self.options.anneal_from:
            return self._anneal(now, progress)
        return self._hold(now, progress)

    def _limit(self) -> float:
        """Return the mean of a look above which it is a divergence."""
        best, recent = self._best, self._recent
        if best == math.inf:
            return math.inf
        jumps = mean(abs(a - b) for a, b in pairwise(recent))
        return best + max(abs(best) * (self.options.blow_up - 1), self.options.noise * jumps)

    def _join(self, now: float, progress: float) -> Proposal:
        if progress > self.options.probe_until / 3:
            self.phase = Phase.HOLD
            return keep("this run has begun already: its rate is held")
        # Of steps at another rate, made before this change, the losses do not count.
        self._target = max(now / self.options.drop, min(now, self.options.floor))
        return scale_rate(now, self._target, "the rate is searched from below")

    def _probe(self, now: float, loss: float, progress: float) -> Proposal:
        options, rate = self.options, self._target or now
        if math.isnan(self._first):  # at the low rate: what the steps before it have done does not count
            self._first = loss
        fallen = (self._first - loss) / max(abs(self._first), 1e-12)
        if fallen >= options.fall or progress >= options.probe_until:
            self.phase, self._target = Phase.HOLD, rate * options.multiple
            return scale_rate(now, self._target, f"at {rate:.3g} the loss has fallen by {fallen:.0%}: the search ends")
        self._target = rate * options.up
        return scale_rate(now, self._target, f"at {rate:.3g} the loss has fallen by {fallen:.0%}: the search goes on")

    def _hold(self, now: float, progress: float) -> Proposal:
        # A warm-up of the run's own schedule goes on meanwhile.
        if self._target is not None and progress < self.options.probe_until:
            return scale_rate(now, self._target, "the rate that was found is held")
        return keep("the rate is held")

    def _anneal(self, now: float, progress: float) -> Proposal:
        options = self.options
        if self.phase is not Phase.ANNEAL or self._top is None:
            self.phase, self._top = Phase.ANNEAL, now
        left = min(1.0, (progress - options.anneal_from) / max(1e-9, 1 - options.anneal_from))
        wanted = self._top * (options.anneal_to + (1 - options.anneal_to) * (1 + math.cos(math.pi * left)) / 2)
        # A schedule of the run's own may be lower already.
        return scale_rate(now, min(now, wanted), f"{left:.0%} of the anneal")

    def _lower(self, now: float, loss: float) -> Proposal:
        self.phase, self._top = Phase.HOLD, None
        self._target = now / self.options.down
        self._best, self._recent = math.inf, []
        return scale_rate(now, self._target, f"loss {loss:.4g} is not finite or far above its best")
