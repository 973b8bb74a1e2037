"""Applier of `evaluate` for a Transformers Trainer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command, Evaluate
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.process.plain_values import number
from ray_jobs.steering.appliers import random_state_kept

EVALUATION_LOSS = re.compile(r"eval_(.+_)?loss|eval_loss/[^/]+")
LISTENERS = ("ray_jobs.", "transformers.integrations.")


class EvaluateApplier:
    """Applier of `evaluate`: evaluates now, on all ranks; the reading is the loss that Transformers gathers over them.

    With several evaluation sets, one loss each: `eval_NAME_loss`; of sources that hold records out, `eval_loss/NAME`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def check(self, command: Command) -> str | None:
        """Reject if the run has no evaluation set."""
        assert isinstance(command.intent, Evaluate)
        mixture: MixtureDataset | None = getattr(self._trainer, "_mixture", None)
        holds_out = mixture is not None and bool(mixture.order.held_out(1))
        has_set = self._trainer.eval_dataset is not None or holds_out
        return None if has_set else "this run has no evaluation set, and no source has 'held_out'"

    def apply(self, command: Command, step: int) -> Applied:
        """Collective: every rank evaluates its part. Random state and Trainer control are left unchanged, and the
        script's own callbacks are not called: early stopping counts the script's own evaluations only.
        """
        control = self._trainer.control
        planned = dict(vars(control))
        with random_state_kept(), _only_listeners(self._trainer.callback_handler):
            metrics = self._trainer.evaluate()
        # Logging the evaluation's own numbers crosses out what this step was going to log.
        vars(control).update(planned)
        self._trainer.control = control
        losses = {name: number(value) for name, value in metrics.items() if EVALUATION_LOSS.fullmatch(name)}
        return Applied(before={}, after=losses or {"eval_loss": None})

    def undo(self, command: Command) -> None:
        """Nothing was changed."""


@contextmanager
def _only_listeners(handler: CallbackHandler) -> Iterator[None]:
    """Keep only callbacks that change nothing: Steerway's, and Transformers' reporting integrations."""
    everyone = handler.callbacks
    handler.callbacks = [one for one in everyone if type(one).__module__.startswith(LISTENERS)]
    try:
        yield
    finally:
        handler.callbacks = everyone
