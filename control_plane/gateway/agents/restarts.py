"""Restarts of the processes of agents and generators: the loop of their supervisors, and the pauses in between."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from control_plane.core.model.errors import SteerwayError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LOCK_PAUSE_S = 5.0
"""Pause while another process holds the lock: that of a gateway that has just been killed is gone by then."""

GIVE_UP_AFTER = 5
"""Failures in a row without a decision. The next would be like them, and each may have cost a call."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Restarts:
    """Failures of one process: the pause before it is started again grows from one to the next."""

    in_a_row: int = 0
    """Without a decision in between."""

    _next_pause_s: float = FIRST_PAUSE_S

    def failed(self, decided: bool) -> float | None:
        """Note a failure, of a process that has `decided` something or not. Return the pause before it is started
        again, or None: it is given up."""
        if decided:
            self.in_a_row, self._next_pause_s = 0, FIRST_PAUSE_S
        else:
            self.in_a_row += 1
        if self.in_a_row >= GIVE_UP_AFTER:
            return None
        pause_s, self._next_pause_s = self._next_pause_s, min(2 * self._next_pause_s, LONGEST_PAUSE_S)
        return pause_s


async def supervise(
    what: str,
    revoke: Callable[[], Awaitable[None]],
    look: Callable[[], Awaitable[None]],
    pause: Callable[[], Awaitable[None]],
) -> None:
    """Revoke the tokens of a gateway that was killed, whose processes ended with it; then look until cancelled.

    Args:
        what: is supervised, for the log.
    """
    try:
        await revoke()
    except (SteerwayError, OSError) as error:
        log.error("tokens of earlier %s stay: %s", what, getattr(error, "reason", error))
    while True:
        try:
            await look()
        except (SteerwayError, OSError) as error:
            log.warning("%s: %s", what, getattr(error, "reason", error))
        await pause()
