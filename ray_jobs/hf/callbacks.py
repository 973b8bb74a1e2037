"""Callbacks of a steered Transformers Trainer, which call `SteeredRun`, each with one concern.

    InteractiveCallback   the boundary itself, the live training, evaluation
    RunPauseCallback      pause, resume, stop, roll back
    CheckpointCallback    saving, when asked and every k steps (see `saving`)
    LoggingCallback       metrics to the control server

They are added in this order, and Transformers calls them in it. All ranks have all of them.
"""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from control_plane.core.model.errors import Invalid
from ray_jobs.hf.evaluate import EvaluateApplier
from ray_jobs.hf.live import engine_of, live
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.actions import ScriptExtensions


class InteractiveCallback(TrainerCallback):
    """Restores the checkpoint, and starts a boundary with every optimizer step; the Trainer ends it."""

    def __init__(self, trainer: Trainer, run: SteeredRun, extensions: ScriptExtensions | None = None) -> None:
        self._trainer, self._run, self._extensions = trainer, run, extensions

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Wrap the schedule, register appliers, and restore the checkpoint.

        Raises: `Invalid` if DeepSpeed was asked for and is not in force, `Diverged` if what is restored differs.
        """
        if args.deepspeed and engine_of(self._trainer) is None:
            raise Invalid(
                "the training arguments name a DeepSpeed config, but accelerate left DeepSpeed out: `use_cpu=True` and "
                "ACCELERATE_USE_CPU do that; on a CPU, set DS_ACCELERATOR=cpu instead"
            )
        run = self._run
        training = live(
            self._trainer,
            run.saver,
            self._extensions,
            run.context.limits,
            is_stopping=lambda: run.is_stopping,
            was_told_to_stop=lambda: run.is_stopping or run.leaving,
        )
        run.begin(training, EvaluateApplier(self._trainer))

    def on_step_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Collective. Start the boundary's broadcast, which overlaps with the step."""
        self._run.begin_step()

    def on_substep_end(self, *unused: Any, **kwargs: Any) -> None:
        """Report progress to the watchdog after a micro-batch."""
        self._run.beat("training")

    def on_prediction_step(self, *unused: Any, **kwargs: Any) -> None:
        """Report progress to the watchdog after an evaluation batch."""
        self._run.beat("evaluating")

    def on_train_end(self, *unused: Any, **kwargs: Any) -> None:
        """Report the ending phase to the watchdog; the control server is told after the last save."""
        self._run.beat("ending")


class RunPauseCallback(TrainerCallback):
    """Registers the appliers of pause, resume, stop and rollback. The boundary itself holds a pause."""

    def __init__(self, run: SteeredRun) -> None:
        self._run = run

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Register the appliers."""
        self._run.register_lifecycle()


class CheckpointCallback(TrainerCallback):
    """Has checkpoints saved, on command and every k steps; the Trainer calls the saver after a step's evaluation."""

    def __init__(self, run: SteeredRun) -> None:
        self._run = run

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Create the writer and register the applier."""
        self._run.begin_saving()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for a save that is still being written."""
        self._run.saver.finish()


class LoggingCallback(TrainerCallback):
    """Sends the Trainer's logs to the control server, with the learning rate that the step used."""

    def __init__(self, run: SteeredRun) -> None:
        self._run = run

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Collective. Announce this generation: all appliers are registered by now."""
        self._run.announce()

    def on_step_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Note the learning rates that the coming step will use."""
        if self._run.log is not None:
            self._run.log.before_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Forward rank 0's numbers; Transformers has already averaged the loss over the ranks.

        Logs of an evaluation before the training are dropped: they belong to no step of the run.
        """
        if self._run.log is not None:
            self._run.log.log(state.global_step, logs or {})
        # An evaluation by a command happens within the boundary; after a failure it is not repeated.
        if self._run.health is not None and self._run.opened().is_open(state.global_step):
            self._run.health.signs.evaluated(logs or {})
