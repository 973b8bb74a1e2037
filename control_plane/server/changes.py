"""Changes of a run's state, to wait for."""

import asyncio
from collections.abc import Callable

from control_plane.api.messages import MAX_WAIT_S


class Changes:
    """Notification of everybody who waits for the state to change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Measure waits by `clock`."""
        self._clock, self._changed = clock, asyncio.Event()

    def notify(self) -> None:
        """Wake everybody who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(self, ready: Callable[[], bool], wait_s: float) -> None:
        """Wait until `ready()`, at most `wait_s` and at most `MAX_WAIT_S`."""
        # In this order a NaN counts as the longest wait.
        deadline = self._clock() + min(MAX_WAIT_S, wait_s)
        while not ready():
            left_s = deadline - self._clock()
            if left_s <= 0:
                return
            # Not `asyncio.wait_for`: in Python 3.11 it swallows a cancellation that comes together with a change.
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                return
