"""Pause offload: while the run is paused, DeepSpeed's states are moved from the GPUs to host memory.

    RankSession(..., rest=PauseOffload(engine).rest)      where the run's config says `pause: {offload: true}`

A paused run still takes commands, and most of them need the states: whatever is voted on while the run is held brings
them back first, and they go again when there is nothing left to do. Each way is a copy of a rank's whole share between
its GPU and pinned host memory, which must have room for it.

DeepSpeed moves them, with `engine.offload_states` and `reload_states`. It can with ZeRO 3 and its own FusedAdam; in
DeepSpeed 0.19 also with ZeRO 1 and 2, but there it builds the links between weights and optimizer state anew, on which
freezing, resetting and digests stand, so that those are left alone. Where it cannot be done, the log says why and a
pause is what it always was. Tested with a stand-in for the engine only: no GPU has seen this yet.
"""

import logging
from typing import TYPE_CHECKING

from ray_jobs.process.error_text import error_text

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

OPTIMIZER = "FusedAdam"
"""Only optimizer whose state DeepSpeed can offload under ZeRO 3; it asserts the class."""


class PauseOffload:
    """Offload of one rank's states during a pause. No collectives."""

    def __init__(self, engine: "DeepSpeedEngine | None") -> None:
        self._engine, self._reason = engine, reason_not_offloadable(engine)
        self._is_away = False
        if self._reason is not None:
            log.warning("pause.offload has no effect: %s", self._reason)

    def rest(self, resting: bool) -> None:
        """Offload the states, or reload them. Idempotent.

        Raises DeepSpeed's exception if they cannot be reloaded: then this rank has lost them. If they cannot be
        offloaded, they are reloaded, and it is not tried again.
        """
        if self._engine is None or self._reason is not None or resting == self._is_away:
            return
        if not resting:
            self._engine.reload_states()
            self._is_away = False
            log.info("the states are on the device again")
            return
        try:
            self._engine.offload_states()
        except Exception as error:
            # Some of them may be away: DeepSpeed knows which.
            self._engine.reload_states()
            self._reason = error_text(error)
            log.warning("pause.offload has no effect: %s", self._reason)
            return
        self._is_away = True
        log.info("the states are in host memory while the run is paused")


def reason_not_offloadable(engine: "DeepSpeedEngine | None") -> str | None:
    """Return the reason why the states of this run cannot be offloaded, or None."""
    if engine is None:
        return "this run trains without DeepSpeed, which is what moves states"
    if str(engine.device).startswith("cpu"):
        return "this run trains on CPUs, and its states are in host memory already"
    if engine.zero_optimization_stage() != 3:
        return f"this run trains with ZeRO {engine.zero_optimization_stage()}; states are moved with ZeRO 3 only"
    moved = getattr(engine, "offload_states", None), getattr(engine, "reload_states", None)
    if not all(map(callable, moved)):
        return "this DeepSpeed cannot move states"
    parameters = engine.zero_offload_param()
    if parameters is not None and str(getattr(parameters.device, "value", parameters.device)) != "none":
        return "this run offloads its parameters all the time, and DeepSpeed does not move those"
    name = type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__
    if name != OPTIMIZER:
        return f"this run's optimizer is {name}; DeepSpeed moves the state of its own {OPTIMIZER} only"
    return None
