"""The Hugging Face Trainer, steered, with the least overridden.

    from ray_jobs.trainer import make_interactive
    trainer = make_interactive(Trainer)(model=model, args=args, train_dataset=data)

Started by `steer submit`, the trainer can be steered. Started by hand, it is the class that it was made from.
"""

import logging
from typing import Any, TypeVar

from transformers import Trainer

from ray_jobs import context
from ray_jobs.callbacks import (
    CheckpointCallback,
    InteractiveCallback,
    LoggingCallback,
    RunPauseCallback,
    close_failed,
)
from ray_jobs.data import SampleOrder

log = logging.getLogger(__name__)

T = TypeVar("T", bound=type[Trainer])


def make_interactive(trainer_class: T) -> T:
    """A subclass of `trainer_class` that can be steered. Only `__init__` and `train` are extended."""

    class Interactive(trainer_class):  # type: ignore[misc, valid-type]
        """Adds the callbacks when the process works for a run, and reports how the training ended."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            run = context.current()
            if run is None:
                log.warning("not started by `steer submit`: this trainer runs, but nobody can steer it")
                return
            interactive = InteractiveCallback(self, run)
            saving = CheckpointCallback(interactive, run.checkpoint_every_steps)
            for callback in (
                interactive,
                RunPauseCallback(interactive, saving),
                saving,
                LoggingCallback(interactive),
            ):
                self.add_callback(callback)

        def train(self, *args: Any, **kwargs: Any) -> Any:
            """As before; a failure is told to the control server before it goes its way."""
            try:
                return super().train(*args, **kwargs)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                close_failed(self.callback_handler.callbacks, self.state.global_step, reason)
                raise

    Interactive.__name__ = f"Interactive{trainer_class.__name__.removeprefix('Interactive')}"
    Interactive.__qualname__ = Interactive.__name__
    return Interactive  # type: ignore[return-value]


InteractiveTrainer = make_interactive(Trainer)


class OrderedTrainer(InteractiveTrainer):  # type: ignore[misc, valid-type]
    """For the shipped workloads: the order of samples is a pure function of seed and epoch, whatever the world size."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SampleOrder:
        return SampleOrder(len(train_dataset or self.train_dataset), self.args.seed)
