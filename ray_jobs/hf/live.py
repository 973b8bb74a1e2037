"""Live training of a Transformers Trainer, and the private attributes of Trainer that it reads and writes.

Read in Transformers 5.23 and accelerate 1.15. The methods that `make_interactive` overrides are in `trainer`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer

from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from ray_jobs.checkpoint.batch import BatchPlan, global_batch_samples
from ray_jobs.hf import script_callbacks
from ray_jobs.hf.data_position import DataPosition
from ray_jobs.hf.hf_knobs import clipping_place, interval_knobs
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.steering.actions import ScriptExtensions
from ray_jobs.steering.freezing import FrozenParameters
from ray_jobs.steering.knobs import Knobs
from ray_jobs.steering.module_knobs import register_module_knobs
from ray_jobs.steering.partitions import Partitions
from ray_jobs.steering.schedule import ParamGroups, SteeredSchedule
from ray_jobs.steering.training_knobs import Saver, register_training_knobs

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from ray_jobs.data.mixture.dataset import MixtureDataset
    from ray_jobs.data.sample_order import SampleOrder
    from ray_jobs.data.skipping import SkippedBatches, StreamPlace

LOSS_SUMS = {"total_loss_scalar": 0.0, "globalstep_last_logged": 0, "initial_global_step": 0}
"""Private attributes of Trainer, without the underscore, with the value before the training.

The mean loss that Transformers tells at the end is over all steps, not over those since the restart.
"""


class TrainerLoop:
    """State of a Trainer's loop. `is_stopping`: whether a command, not the script, has stopped the run."""

    def __init__(self, trainer: Trainer, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._trainer, self._is_stopping = trainer, is_stopping
        # Of a Trainer that nobody has made steerable.
        self._fixed = DataPosition()

    @property
    def step(self) -> int:
        """Optimizer steps made since the beginning of the run."""
        return int(self._trainer.state.global_step)

    @property
    def total_steps(self) -> int:
        """Step at which the training ends."""
        return int(self._trainer.state.max_steps)

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        self._trainer.state.max_steps = value
        if self._trainer.args.max_steps > 0:  # otherwise the arguments count epochs
            self._trainer.args.max_steps = value

    @property
    def stopping(self) -> bool:
        """True if the loop ends after the current step."""
        return bool(self._trainer.control.should_training_stop)

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._trainer.control.should_training_stop = value

    @property
    def most_steps(self) -> int | None:
        """Upper bound of `total_steps`: of data without a length, as many as it was asked for at first."""
        return getattr(self._trainer, "most_steps", None)

    @property
    def step_was_skipped(self) -> bool:
        """True if accelerate's gradient scaler skipped the last step."""
        return bool(getattr(self._trainer.accelerator, "optimizer_step_was_skipped", False))

    @property
    def sample_order(self) -> "SampleOrder | None":
        """Sampler of the run, if it is ours."""
        return getattr(self._trainer, "_order", None)

    @property
    def stream_place(self) -> "StreamPlace | None":
        """Position in a stream without a length."""
        return self._position().stream

    @property
    def skipped(self) -> "SkippedBatches":
        """Global batches that commands have left out of the data."""
        return self._position().skipped

    @property
    def mixture(self) -> "MixtureDataset | None":
        """Data of the run's sources, if samples are drawn from them by our order."""
        return getattr(self._trainer, "_mixture", None)

    def redraw(self) -> None:
        """Begin the epoch's iterator anew."""
        self._position().redraw()

    def reason_not_to_skip(self) -> str | None:
        """Return the reason why no batches can be left out of this data, or None."""
        if not hasattr(self._trainer, "reason_not_to_skip"):
            return "no samples can be skipped, since make_interactive has not made this Trainer"
        reason: str | None = self._trainer.reason_not_to_skip()
        return reason

    def skip(self, batches: int) -> None:
        """Leave out the next `batches` global batches."""
        self._position().skip(self.step, batches)

    def take_back_skip(self) -> None:
        """Undo the last `skip`."""
        self._position().take_back()

    def restore_skipped(self, saved: Sequence[Sequence[int]]) -> None:
        """Restore what was left out; the epoch begins where the data continues."""
        self._position().recall(saved)

    def _position(self) -> DataPosition:
        position: DataPosition = getattr(self._trainer, "_data_position", self._fixed)
        return position

    @property
    def log_every_steps(self) -> int:
        """Steps from one logged loss to the next; 1 where Transformers logs by epochs, or not at all."""
        is_by_steps = self._trainer.args.logging_strategy == "steps"
        return max(1, int(self._trainer.state.logging_steps)) if is_by_steps else 1

    @property
    def log_history(self) -> list[Readback]:
        """Logged metrics, oldest first."""
        return self._trainer.state.log_history

    def state(self) -> Readback:
        """Return the Trainer's state."""
        return dataclasses.asdict(self._trainer.state)

    def loss_sums(self) -> Readback:
        """Return the running sums of the loss, and the floating-point operations since the last log."""
        private = {name: type(none)(getattr(self._trainer, f"_{name}", none)) for name, none in LOSS_SUMS.items()}
        sums = {"tr_loss": float(getattr(self._trainer, "_tr_loss", 0.0))} | private
        return sums | {"current_flos": float(getattr(self._trainer, "current_flos", 0.0))}

    def restore_loss_sums(self, saved: Readback) -> None:
        """Restore them from a checkpoint."""
        self._trainer._tr_loss.fill_(saved["tr_loss"])
        for name in LOSS_SUMS:
            setattr(self._trainer, f"_{name}", saved[name])
        self._trainer.current_flos = saved["current_flos"]

    def script_state(self) -> Readback:
        """Return the state of the script's own callbacks, and whether the script has ended the training."""
        return script_callbacks.captured(self._trainer, self._is_stopping())


def engine_of(trainer: Trainer) -> "DeepSpeedEngine | None":
    """Return the Trainer's DeepSpeed engine, or None: without DeepSpeed, and before the training."""
    engine: DeepSpeedEngine | None = trainer.deepspeed
    return engine


def live(
    trainer: Trainer,
    saver: Saver | None = None,
    extensions: ScriptExtensions | None = None,
    limits: Mapping[str, Limit] | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
    was_told_to_stop: Callable[[], bool] = lambda: False,
) -> LiveTraining:
    """Return the live training of a Trainer whose engine and schedule exist; its schedule is wrapped.

    Args:
        is_stopping: whether a command has stopped the run.
        was_told_to_stop: the same, or whether a command has the run continue on another branch.
    """
    engine, model = engine_of(trainer), trainer.model
    optimizer = engine.optimizer if engine is not None else trainer.optimizer
    assert isinstance(model, torch.nn.Module)
    assert optimizer is not None
    partitions = Partitions(model, optimizer, engine, bool(getattr(trainer, "is_fsdp_enabled", False)))
    schedule, loop = _steer(trainer, partitions.groups), TrainerLoop(trainer, was_told_to_stop)
    knobs, extensions = Knobs(limits, lambda: schedule.names), extensions or ScriptExtensions()
    extensions.register_knobs(knobs)
    intervals, clipping = interval_knobs(trainer), clipping_place(trainer)
    register_training_knobs(knobs, partitions, loop, saver, is_stopping, intervals, clipping)
    register_module_knobs(knobs, model)
    return LiveTraining(
        model=model,
        optimizer=optimizer,
        engine=engine,
        loop=loop,
        partitions=partitions,
        schedule=schedule,
        knobs=knobs,
        frozen=FrozenParameters(partitions),
        extensions=extensions,
        device=trainer.args.device,
        global_batch_samples=global_batch_samples(trainer.args),
        accumulation_steps=trainer.args.gradient_accumulation_steps,
        optimizer_name=type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        schedule_name=type(trainer.lr_scheduler).__name__,
        inexact=tuple(getattr(trainer, "inexact", ())),
    )


def _steer(trainer: Trainer, groups: Callable[[], ParamGroups]) -> SteeredSchedule:
    """Install a `SteeredSchedule` wherever the Trainer or its DeepSpeed engine steps the scheduler.

    With a DeepSpeed scheduler, or with DeepSpeed's optimizer, the engine steps it and the Trainer holds a wrapper
    that does nothing; with Transformers' optimizer and scheduler, the Trainer steps it.
    """
    outer: Any = trainer.lr_scheduler
    inner = getattr(outer, "scheduler", outer)
    steered = SteeredSchedule(inner, groups)
    engine = engine_of(trainer)
    if engine is not None and engine.lr_scheduler is inner:
        engine.lr_scheduler = steered
    if inner is not outer:
        outer.scheduler = steered
    else:
        trainer.lr_scheduler = trainer.callback_handler.lr_scheduler = cast(Any, steered)
    return steered


def apply_batch_plan(trainer: Trainer, plan: BatchPlan) -> None:
    """Set a Trainer's batch sizes, wherever they live. Call it before `trainer.train()`.

    accelerate's own number of accumulation steps is left alone: Transformers keeps it at 1, because it accumulates
    itself, and with DeepSpeed accelerate takes over DeepSpeed's number when it builds the engine.
    """
    args = trainer.args
    args.per_device_train_batch_size = plan.micro_batch_per_rank
    args.gradient_accumulation_steps = plan.accumulation_steps
    trainer._train_batch_size = args.train_batch_size
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    sizes = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_per_rank,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.global_batch_samples(args.world_size),
    }
    plugin.gradient_accumulation_steps = plan.accumulation_steps
    for config in (plugin.hf_ds_config.config, plugin.deepspeed_config):
        config.update(sizes)
    # Noted when the arguments were made, against sizes that hold no more; they would be complained of in `train`.
    noted = getattr(plugin.hf_ds_config, "mismatches", [])
    noted[:] = [mismatch for mismatch in noted if not any(f"ds {key}=" in mismatch for key in sizes)]
