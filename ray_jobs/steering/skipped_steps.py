"""Skipped optimizer steps: gradients overflowed, the loss scaler lowered its scale, no weight changed.

DeepSpeed skips such steps in 16 bits (fp16; bf16 unless `check_grad_overflow` is off), on all ranks or on none, and so
does accelerate with a gradient scaler. What follows from that:

- The step counts: it has its boundary, commands are settled there, and the run's length is in steps made or skipped.
- Weights, moments and schedule stay where they were. A schedule, steered or not, is moved by steps that were taken; a
  course that was planned `over_steps` of them reaches its end so many steps later as were skipped.
- A command that is applied at such a boundary is in force from the next step that is taken, and its reading says that
  the step before it was skipped. DeepSpeed keeps count and flag in a checkpoint, so that a repetition reads the same.
"""

from typing import TYPE_CHECKING

from control_plane.core.model.records import SKIPPED_STEPS, STEP_WAS_SKIPPED, Readback
from ray_jobs.process import deepspeed_internals

if TYPE_CHECKING:
    from ray_jobs.rank.live_training import LiveTraining


def was_skipped(training: "LiveTraining") -> bool:
    """Return whether the optimizer skipped the last step; the same on all ranks."""
    if training.engine is not None:
        return deepspeed_internals.step_overflowed(training.engine)
    return training.loop.step_was_skipped


def skipped_steps(training: "LiveTraining") -> int:
    """Return the number of steps that DeepSpeed's engine has skipped in this training; 0 without an engine."""
    return int(getattr(training.engine, "skipped_steps", 0))


def readings(training: "LiveTraining") -> Readback:
    """Return the entries for the reading of a command that is applied now; none if no step was skipped."""
    count, flag = skipped_steps(training), was_skipped(training)
    return ({SKIPPED_STEPS: count} if count else {}) | ({STEP_WAS_SKIPPED: True} if flag else {})
