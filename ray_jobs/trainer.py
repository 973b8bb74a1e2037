"""The Hugging Face Trainer, steered, with the least overridden.

    from ray_jobs.trainer import make_interactive
    trainer = make_interactive(Trainer)(model=model, args=args, train_dataset=data)

Started by `steer submit`, the trainer can be steered. Started by hand, it is the class that it was made from.
"""

import logging
from typing import Any, TypeVar

from transformers import Trainer

from ray_jobs import context, restore
from ray_jobs.callbacks import (
    AlreadyOver,
    InteractiveCallback,
    LoggingCallback,
    RunPauseCallback,
)
from ray_jobs.data import SampleOrder
from ray_jobs.saving import CheckpointCallback

log = logging.getLogger(__name__)

T = TypeVar("T", bound=type[Trainer])


def make_interactive(trainer_class: T) -> T:
    """A subclass of `trainer_class` that can be steered, and that begins where the run was.

    Of Transformers' Trainer it extends `train`, and the four places inside of it where a checkpoint is loaded and
    where a step is over: after the optimizer's step, its logging and its evaluation, before the next step.
    """

    class Interactive(trainer_class):  # type: ignore[misc, valid-type]
        """Adds the callbacks when the process works for a run, and reports how the training ended."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._steering: InteractiveCallback | None = None
            run = context.current()
            if run is None:
                log.warning("not started by `steer submit`: this trainer runs, but nobody can steer it")
                return
            self._steering = InteractiveCallback(self, run)
            self._saving = CheckpointCallback(self._steering, run.checkpoint_every_steps)
            for callback in (
                self._steering,
                RunPauseCallback(self._steering, self._saving),
                self._saving,
                LoggingCallback(self._steering),
            ):
                self.add_callback(callback)

        def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            """As before, from where the run was. A failure is told to the control server before it goes its way."""
            steering = self._steering
            if steering is None:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            output = None
            try:
                plan = steering.open()
                begin_at = str(plan.state_folder) if plan.checkpoint else resume_from_checkpoint
                output = super().train(begin_at, *args, **kwargs)
            except AlreadyOver:
                log.info("step %d was the last: nothing is left to train", self.state.global_step)
            except Exception as error:
                steering.fail(self.state.global_step, error)
                raise
            steering.close(self.state.global_step)
            return output

        def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
            if not self._restores():
                return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
            prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
            restore.load(self, self._steering.plan)  # type: ignore[union-attr, arg-type]
            return prepared

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not self._restores():
                super()._load_from_checkpoint(resume_from_checkpoint, model)

        def _load_rng_state(self, checkpoint: str | None) -> None:
            if not self._restores():
                super()._load_rng_state(checkpoint)
                return
            assert self._steering is not None
            assert self._steering.plan is not None
            restore.random_generators(self, self._steering.plan, self._steering.opened().rank)

        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            # Transformers also calls this at the end of an epoch, when the step is over already.
            if self._steering is not None and self._steering.opened().is_open(self.state.global_step):
                self._saving.after_step(self.state.global_step)
                self._steering.boundary(self.state.global_step)

        def _restores(self) -> bool:
            return (
                self._steering is not None and self._steering.plan is not None and bool(self._steering.plan.checkpoint)
            )

    Interactive.__name__ = f"Interactive{trainer_class.__name__.removeprefix('Interactive')}"
    Interactive.__qualname__ = Interactive.__name__
    return Interactive  # type: ignore[return-value]


InteractiveTrainer = make_interactive(Trainer)


class OrderedTrainer(InteractiveTrainer):  # type: ignore[misc, valid-type]
    """For the shipped workloads: the order of samples is a pure function of seed and epoch, whatever the world size."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SampleOrder:
        return SampleOrder(len(train_dataset or self.train_dataset), self.args.seed)
