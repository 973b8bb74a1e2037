"""A rank that makes no progress ends itself, so that Ray Train sees a death and starts the trainers anew.

A stopped process, a deadlock and a cut network look alike to the ranks that wait: nothing happens, for as long as a
collective's patience lasts, which is half an hour. Every rank has one of these threads; those that wait in vain end,
and the one that was stopped is ended with them by Ray.

The bound follows the steps that were measured; whatever is known to take longer (the first step, an evaluation, a
save) is announced. Time is counted in ticks: when the whole machine stands still, so does the count.
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

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often the silence is measured."""

SLOWEST_STEPS = 50
SILENCE_FACTOR = 10.0
"""So many times the slowest of the last steps may pass without a sign."""

PATIENCE_S = {"starting": 300.0, "evaluating": 120.0, "saving": 120.0, "paused": 60.0, "ending": 300.0}
"""What is not a step has signs of its own: each prediction, each round of a pause. First steps compile and allocate."""

EXIT_HUNG = 75


class Watchdog:
    """One rank's. `bite` is called, in the watchdog's thread, with a sentence; by default the process ends at once."""

    def __init__(self, least_s: float, last_words: Path, bite: Callable[[str], None] | None = None) -> None:
        self.least_s = least_s
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
    def bound_s(self) -> float:
        """How long there may be no sign of progress now."""
        if self._phase != "training":
            return max(self.least_s, PATIENCE_S.get(self._phase, PATIENCE_S["starting"]))
        if not self._steps_s:
            return max(self.least_s, PATIENCE_S["starting"])
        return max(self.least_s, SILENCE_FACTOR * max(self._steps_s))

    def _watch(self) -> None:
        seen, last_s = self._beats, time.monotonic()
        while not self._stopped.wait(TICK_S):
            now_s = time.monotonic()
            # A tick that came late says that this thread stood still, too: it proves nothing about the others.
            tick_s, last_s = min(now_s - last_s, 2 * TICK_S), now_s
            if self._beats != seen:
                seen, self._silent_s = self._beats, 0.0
                continue
            self._silent_s += tick_s
            if self._silent_s > self.bound_s:
                self._bite(f"no progress for {self._silent_s:.1f} s while {self._phase}: a peer is stopped or cut off")
                return

    def _end(self, reason: str) -> None:
        """Say why, where the driver finds it, and end without waiting for anything that may hang, too."""
        log.error("%s; this rank ends itself", reason)
        try:
            self._last_words.write_text(json.dumps({"pid": os.getpid(), "reason": reason, "time_s": time.time()}))
            faulthandler.dump_traceback()
        except OSError as error:
            log.error("its last words were not written: %s", error)
        logging.shutdown()
        os._exit(EXIT_HUNG)
