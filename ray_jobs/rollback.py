"""Going back: a training ends after a boundary, for another one to begin at a checkpoint in the same processes.

    RollbackApplier    votes, and ends the loop
    LeaveForBranch     carries the end out of the user's script, to `train.main`, which begins again from the top
    release            what DeepSpeed holds of the engine that has ended
    forget_training    what the libraries still know of the training that has ended

The new training is begun as after a loss: a new trainer and a new engine, history from the control server, a checkpoint
of which every byte is verified, a digest that is compared. If any of that fails, the process ends, and Ray Train starts
the ranks in fresh ones.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any

from control_plane.core.boundary import Applied
from control_plane.core.branching import reading
from control_plane.core.commands import Command
from control_plane.core.intents import Rollback
from control_plane.core.records import Reading
from control_plane.storage.checkpoints import Manifest

log = logging.getLogger(__name__)


class LeaveForBranch(BaseException):
    """The run goes on with another branch. No `Exception`: a script that catches those must not train on."""


class RollbackApplier:
    """Ends the training after this boundary, if every rank can read its part of the checkpoint.

    `find` reads a checkpoint's manifest and verifies this rank's share of its bytes, or says what is wrong; `misfit`
    says why a branch that there is has another model than this one; `leave` ends the loop, or lets it go on;
    `check_other` checks a command that the branch is to begin with.
    """

    def __init__(
        self,
        find: Callable[[str], Manifest | str],
        misfit: Callable[[str], str | None],
        leave: Callable[[bool], None],
        check_other: Callable[[Command], str | None],
    ) -> None:
        self._find, self._misfit, self._leave, self._check_other = find, misfit, leave, check_other
        self._found: Manifest | None = None

    def check(self, command: Command) -> str | None:
        """The checkpoint is what was saved, and what comes first is possible."""
        intent = _rollback(command)
        if intent.checkpoint is None:
            return self._misfit(str(intent.branch))
        found = self._find(intent.checkpoint)
        if isinstance(found, str):
            return found
        self._found = found
        first = (command.model_copy(update={"intent": each}) for each in intent.first)
        return next((problem for each in first if (problem := self._check_other(each))), None)

    def apply(self, command: Command, step: int) -> Applied:
        """The loop ends after this boundary."""
        intent, found = _rollback(command), self._found
        after: Reading = {"branch": intent.branch}
        if intent.checkpoint is not None:
            assert found is not None, "it was checked before"
            after = reading(found.checkpoint, found.step, found.branch)
        self._leave(True)
        return Applied(before={}, after=after)

    def undo(self, command: Command) -> None:
        """Stay."""
        self._leave(False)


def _rollback(command: Command) -> Rollback:
    assert isinstance(command.intent, Rollback)
    return command.intent


def release(engine: Any) -> None:
    """Have DeepSpeed take its hooks away. They stand on nodes of autograd, through which Python's garbage collector
    does not see: an engine with its weights and moments would stay for as long as the process."""
    try:
        if engine is not None:
            engine.destroy()
            _forget_module(engine.module)
    except Exception:
        log.exception("DeepSpeed's engine was not released: its memory stays in use")


def _forget_module(module: Any) -> None:
    """ZeRO 3 keeps every model that it has partitioned in a list of its own, and with it the hooks and the engine."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    FWD_MODULE_STACK[:] = [each for each in FWD_MODULE_STACK if each is not module]


def forget_training() -> None:
    """Accelerate keeps one state for the whole process, and engines hold each other in circles."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    gc.collect()
    log.info("the training has ended for another branch")
