"""Adaptive clipping alone: ZClip (arXiv 2504.02507) by the knob `gradient_clipping`.

ZClip keeps a moving mean m and deviation d of the gradient norm. A norm whose z = (norm - m) / d is above the threshold
is clipped to m + threshold x d / (z / threshold), and enters the averages as clipped. A knob acts on the steps that
follow: so the rule sets the norm at which ZClip would begin to clip, m + threshold x d, and right after an outlier the
lower one of its formula.
"""

import math
from dataclasses import dataclass

from control_plane.agent.grants import Proposal, SetTo
from control_plane.agent.policy import Observation
from control_plane.agent.rules.rule import Cursor, keep

CLIPPING = "gradient_clipping"


@dataclass(frozen=True, slots=True)
class ZClipOptions:
    """Options of ZClip, with the published defaults. `dead_band`: relative change of the norm that is worth a command;
    `max_factor`: largest change at once."""

    decay: float = 0.97
    warm_up: int = 25
    z_threshold: float = 2.5
    dead_band: float = 0.2
    max_factor: float = 10.0


class Norms:
    """Moving mean and variance of the gradient norm."""

    def __init__(self, options: ZClipOptions) -> None:
        self.options = options
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def take(self, norm: float) -> float | None:
        """Take one norm, and return the one to clip to from now on; None during the warm-up or if it is not finite."""
        options = self.options
        if not math.isfinite(norm):
            return None
        if len(self.first) < options.warm_up:
            self.first.append(norm)
            if len(self.first) == options.warm_up:
                self.mean = sum(self.first) / options.warm_up
                self.variance = sum((each - self.mean) ** 2 for each in self.first) / options.warm_up
            return None
        deviation = math.sqrt(self.variance)
        z = (norm - self.mean) / deviation if deviation > 0 else 0.0
        limit = self.mean + options.z_threshold * deviation
        if z > options.z_threshold:
            norm = limit = self.mean + options.z_threshold * deviation / (z / options.z_threshold)
        self.mean = options.decay * self.mean + (1 - options.decay) * norm
        self.variance = options.decay * self.variance + (1 - options.decay) * (norm - self.mean) ** 2
        return limit


class ZClipRule:
    """Adaptive clipping as a rule; the learning rate is left alone."""

    name = "zclip"
    needs: tuple[str, ...] = (CLIPPING,)

    def __init__(self, options: ZClipOptions = ZClipOptions()) -> None:
        self.options = options
        self._cursor = Cursor()
        self._norms = Norms(options)

    def look(self, seen: Observation) -> Proposal:
        """Take the new gradient norms, and propose the norm to clip to if it is far from the live one."""
        if self._cursor.is_anew(seen):
            self._norms = Norms(self.options)
        limit: float | None = None
        for _, norm in self._cursor.take(seen, seen.grad_norms):
            limit = self._norms.take(norm)
        knob = seen.knobs.get(CLIPPING)
        if limit is None or limit <= 0 or knob is None or not isinstance(knob.value, int | float):
            return keep(f"no gradient norms yet, or no knob {CLIPPING}")
        now = float(knob.value)
        if now > 0:
            if abs(limit - now) <= self.options.dead_band * now:
                return keep(f"gradients are clipped to {now:.3g}")
            limit = min(max(limit, now / self.options.max_factor), now * self.options.max_factor)
        return SetTo(CLIPPING, limit, f"gradient norm {self._norms.mean:.3g} +- {math.sqrt(self._norms.variance):.3g}")
