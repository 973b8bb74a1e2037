"""Skipped optimizer steps: gradients overflowed, the loss scaler lowered its scale, no weight changed.

DeepSpeed skips such steps in 16 bits (fp16; bf16 unless `check_grad_overflow` is off), on all ranks or on none, and so
does accelerate with a gradient scaler. What follows from that:

- The step counts: it has its boundary, commands are settled there, and the run's length is in steps made or skipped.
- Weights, moments and schedule stay where they were. A schedule, steered or not, is moved by steps that were taken; a
  course that was planned `over_steps` of them reaches its end so many steps later as were skipped.
- A command that is applied at such a boundary is in force from the next step that is taken, and its reading says that
  the step before it was skipped. DeepSpeed keeps count and flag in a checkpoint, so that a repetition reads the same.
"""

from typing import Any

from control_plane.core.model.records import SKIPPED_STEPS, STEP_WAS_SKIPPED, Readback


def was_skipped(trainer: Any) -> bool:
    """Return whether the optimizer skipped the last step; the same on all ranks."""
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        return bool(getattr(engine.optimizer, "overflow", False))
    return bool(getattr(getattr(trainer, "accelerator", None), "optimizer_step_was_skipped", False))


def skipped_steps(trainer: Any) -> int:
    """Return the number of steps that DeepSpeed's engine has skipped in this training; 0 without an engine."""
    return int(getattr(getattr(trainer, "deepspeed", None), "skipped_steps", 0))


def readings(trainer: Any) -> Readback:
    """Return the entries for the reading of a command that is applied now; none if no step was skipped."""
    count, flag = skipped_steps(trainer), was_skipped(trainer)
    return ({SKIPPED_STEPS: count} if count else {}) | ({STEP_WAS_SKIPPED: True} if flag else {})
