"""Rollback: the training ends after a boundary, and another one begins at a checkpoint in the same processes.

    RollbackApplier    votes, and ends the loop
    LeaveForBranch     unwinds the user's script up to `train.main`, which runs it again from the top
    release            frees the engine that has ended
    forget_training    resets the libraries' process-wide state

The new training begins as after a failure: new trainer and engine, history from the control server, every byte of the
checkpoint verified, digest compared. If any of that fails, the process ends, and Ray Train starts fresh ones.
"""

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import Readback
from control_plane.core.rules.branch_rules import reading
from control_plane.storage.checkpoint.store import Manifest
from ray_jobs.process import deepspeed_internals

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)


class LeaveForBranch(BaseException):
    """Raised to continue the run on another branch. No `Exception`: a script that catches those must not train on."""


class RollbackApplier:
    """Applier of `rollback`: ends the training after this boundary, if every rank verifies its part of the checkpoint.

    `find` returns a checkpoint's manifest after verifying this rank's part of its bytes, or the reason why not;
    `model_mismatch` returns the reason why an existing branch is of another model; `leave` ends the loop, or lets it
    continue; `check_other` checks a command that the branch begins with.
    """

    def __init__(
        self,
        find: Callable[[str], Manifest | str],
        model_mismatch: Callable[[str], str | None],
        leave: Callable[[bool], None],
        check_other: Callable[[Command], str | None],
    ) -> None:
        self._find, self._model_mismatch = find, model_mismatch
        self._leave, self._check_other = leave, check_other
        self._found: Manifest | None = None

    def check(self, command: Command) -> str | None:
        """Verify the checkpoint and check the commands that the branch begins with."""
        intent = _rollback(command)
        if intent.checkpoint is None:
            return self._model_mismatch(str(intent.branch))
        manifest = self._find(intent.checkpoint)
        if isinstance(manifest, str):
            return manifest
        self._found = manifest
        first = (command.model_copy(update={"intent": other}) for other in intent.first)
        return next((reason for other in first if (reason := self._check_other(other))), None)

    def apply(self, command: Command, step: int) -> Applied:
        """End the loop after this boundary."""
        intent, found = _rollback(command), self._found
        after: Readback = {"branch": intent.branch}
        if intent.checkpoint is not None:
            assert found is not None, "it was checked before"
            after = reading(found.checkpoint, found.step, found.branch)
        self._leave(True)
        return Applied(before={}, after=after)

    def undo(self, command: Command) -> None:
        """Continue the training."""
        self._leave(False)


def _rollback(command: Command) -> Rollback:
    assert isinstance(command.intent, Rollback)
    return command.intent


def release(engine: "DeepSpeedEngine | None") -> None:
    """Destroy DeepSpeed's engine and its hooks. They are held by autograd nodes, which Python's garbage collector does
    not traverse: the engine with its weights and moments would leak."""
    try:
        if engine is not None:
            engine.destroy()
            deepspeed_internals.forget_module(engine.module)
    except Exception:
        log.exception("DeepSpeed's engine was not released: its memory stays in use")


def forget_training() -> None:
    """Reset Accelerate's process-wide state, and collect reference cycles of engines."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    gc.collect()
    log.info("the training has ended for another branch")
