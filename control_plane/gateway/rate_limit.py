"""Rate limit for commands, a token bucket per access token: a flood from one client leaves room for others.

A command takes one unit; `per_s` units are refilled each second, up to `burst`.
"""

import time
from collections.abc import Callable

from control_plane.core.model.errors import Overloaded
from control_plane.gateway.tokens import Identity

COMMANDS_PER_S = 20.0
"""More than a person reads or a step boundary applies. In gateway and control server a command costs about 10 ms of
processor time (7 to 13 in the storm benchmark): at this rate a fifth of a core, taken from a training beside it."""

BURST = 100
"""Less than `admission.MAX_PENDING_OF_ONE`: an admitted burst fits into a run's queue."""


class RateLimit:
    """Token buckets, one per owner of an access token."""

    def __init__(
        self, per_s: float = COMMANDS_PER_S, burst: int = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        # By owner: the units left, and when they were counted. As many entries as access tokens.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, identity: Identity) -> None:
        """Take one unit. Raises `Overloaded` if this owner's bucket is empty."""
        now_s = self._clock()
        left, counted_s = self._buckets.get(identity.id, (float(self._burst), now_s))
        left = min(float(self._burst), left + (now_s - counted_s) * self._per_s)
        if left < 1:
            self._buckets[identity.id] = left, now_s
            raise Overloaded(
                f"rate limit of {identity.id} exceeded: {self._per_s:g} commands a second, in bursts of up to "
                f"{self._burst}; retry in {(1 - left) / self._per_s:.2f} s",
                per_s=self._per_s,
            )
        self._buckets[identity.id] = left - 1, now_s
