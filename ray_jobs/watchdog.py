"""A rank that waits in vain ends itself, so that Ray Train sees a death and starts the trainers anew.

A stopped process, a deadlock and a cut network look alike to the ranks that wait: nothing happens, for as long as a
collective's patience lasts, which is half an hour. Every rank has one of these threads. It ends the rank when there is
no progress, and

    the rank that it watches gives no sign of life either      it was stopped, or cut off: found in seconds
    or there has been none for very long                       a deadlock, in which all are alive

A slow machine is neither: a rank that is short of a core still beats (see `heartbeat`). Both bounds follow the steps
that were measured; what is known to take longer is announced. Time is counted in ticks: when this process itself stands
still, so does the count.
"""

import faulthandler
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from control_plane.storage.private import write_file

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often the silence is measured."""

SLOWEST_STEPS = 50
DEADLOCK_FACTOR = 20.0
"""So many times the slowest of the last steps may pass without progress while all ranks are alive."""

LEAST_DEADLOCK_S = 120.0
"""Never less than this: the price of a false alarm is a restart."""

LEAST_SILENCE_BESIDE_STEPS_S = 20.0
"""Building a model or copying a state may keep even this process's own threads waiting for longer than a step does."""

PATIENCE_S = {"starting": 1800.0, "evaluating": 600.0, "saving": 600.0, "paused": 120.0, "ending": 1800.0}
"""What is not a step has signs of its own: each prediction, each round of a pause. A start may convert a checkpoint."""

EXIT_HUNG = 75


class Watchdog:
    """One rank's. `bite` is called, in the watchdog's thread, with a sentence; by default the process ends at once."""

    def __init__(
        self,
        silence_s: float,
        last_words: Path,
        peer_silent_s: Callable[[], float],
        peer: int | None = None,
        bite: Callable[[str], None] | None = None,
    ) -> None:
        """`peer_silent_s` tells how long the watched rank `peer` has been silent; `silence_s` is how long it may be."""
        self.silence_s, self._peer_silent_s, self._peer = silence_s, peer_silent_s, peer
        self._last_words = last_words
        self._bite = bite or self._end
        self._phase = "starting"
        self._silent_s = 0.0
        self._beats = 0
        self._steps_s: deque[float] = deque(maxlen=SLOWEST_STEPS)
        self._step_began_s: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="steerway-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """The training is over."""
        self._stopped.set()

    def beat(self, phase: str) -> None:
        """A sign of progress: what comes next is a part of `phase` (`training` or a key of `PATIENCE_S`)."""
        now_s = time.monotonic()
        if self._phase == phase == "training" and self._step_began_s is not None:
            self._steps_s.append(now_s - self._step_began_s)
        self._step_began_s, self._phase = now_s, phase
        self._beats += 1

    @property
    def deadlock_s(self) -> float:
        """How long there may be no progress now, while all ranks are alive."""
        if self._phase != "training" or not self._steps_s:
            return PATIENCE_S.get(self._phase, PATIENCE_S["starting"])
        return max(LEAST_DEADLOCK_S, DEADLOCK_FACTOR * max(self._steps_s))

    def _watch(self) -> None:
        seen, last_s = self._beats, time.monotonic()
        while not self._stopped.wait(TICK_S):
            now_s = time.monotonic()
            # A tick that came late says that this process stood still, too: it proves nothing about the others.
            tick_s, last_s = min(now_s - last_s, 2 * TICK_S), now_s
            if self._beats != seen:
                seen, self._silent_s = self._beats, 0.0
                continue
            self._silent_s += tick_s
            if reason := self._reason():
                self._bite(reason)
                return

    def _reason(self) -> str | None:
        peer_silent_s = self._peer_silent_s()
        bound_s = self.silence_s if self._phase == "training" else max(self.silence_s, LEAST_SILENCE_BESIDE_STEPS_S)
        # Both: a peer that is silent while steps are made has only lost its way to the store.
        if min(self._silent_s, peer_silent_s) > bound_s:
            return (
                f"no progress for {self._silent_s:.1f} s while {self._phase}, and no sign of life of rank {self._peer} "
                f"for {peer_silent_s:.1f} s: it is stopped or cut off"
            )
        if self._silent_s > self.deadlock_s:
            return f"no progress for {self._silent_s:.0f} s while {self._phase}, though the ranks are alive: a deadlock"
        return None

    def _end(self, reason: str) -> None:
        """Say why, where the driver finds it, and end without waiting for anything that may hang, too."""
        log.error("%s; this rank ends itself", reason)
        try:
            words = {"pid": os.getpid(), "reason": reason, "time_s": time.time()}
            write_file(self._last_words, json.dumps(words))
            faulthandler.dump_traceback()
        except OSError as error:
            log.error("its last words were not written: %s", error)
        logging.shutdown()
        os._exit(EXIT_HUNG)
