"""How many commands one token may send: a bucket that fills steadily, so that a storm from one leaves room for others.

A token bucket: a command takes one drop; `per_s` drops come back each second, up to `burst`.
"""

import time
from collections.abc import Callable

from control_plane.core.model.errors import Overloaded
from control_plane.gateway.tokens import Identity

COMMANDS_PER_S = 20.0
"""More than anybody reads, or than a boundary takes. In the gateway and the control server alone a command costs about
10 ms of processor time (7 to 13 in the storm benchmark): a fifth of a core at this rate, which a training beside it has
to do without."""

BURST = 100
"""Less than `decisions.MAX_PENDING_OF_ONE`: what is let through at once finds room in a run's queue."""


class Allowance:
    """One bucket for each token's owner."""

    def __init__(
        self, per_s: float = COMMANDS_PER_S, burst: int = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        # Who, how many drops are left, and when that was counted. As many as there are tokens.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, identity: Identity) -> None:
        """Raises `Overloaded` if this owner's bucket is empty; then nothing is taken."""
        now_s = self._clock()
        left, counted_s = self._buckets.get(identity.id, (float(self._burst), now_s))
        left = min(float(self._burst), left + (now_s - counted_s) * self._per_s)
        if left < 1:
            self._buckets[identity.id] = left, now_s
            raise Overloaded(
                f"{identity.id} has sent too many commands: {self._per_s:g} a second are taken, "
                f"{self._burst} at once after a rest; try again in {(1 - left) / self._per_s:.2f} s",
                per_s=self._per_s,
            )
        self._buckets[identity.id] = left - 1, now_s
