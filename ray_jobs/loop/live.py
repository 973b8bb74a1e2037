"""Live training of a script's own loop: plain PyTorch, or a DeepSpeed engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from ray_jobs.data.skipping import SkippedBatches, StreamPlace
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.steering.actions import ScriptExtensions
from ray_jobs.steering.freezing import FrozenParameters
from ray_jobs.steering.knobs import Knobs
from ray_jobs.steering.module_knobs import register_module_knobs
from ray_jobs.steering.partitions import Partitions
from ray_jobs.steering.schedule import ParamGroups, Scheduler, SteeredSchedule
from ray_jobs.steering.training_knobs import Saver, register_training_knobs

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from ray_jobs.data.mixture.dataset import MixtureDataset
    from ray_jobs.data.sample_order import SampleOrder

STATE: Readback = {
    "epoch": 0,
    "logging_steps": 500,
    "eval_steps": 500,
    "save_steps": 500,
    "train_batch_size": None,
    "num_train_epochs": 0,
    "num_input_tokens_seen": 0,
    "total_flos": 0,
    "best_metric": None,
    "best_global_step": None,
    "best_model_checkpoint": None,
    "is_local_process_zero": True,
    "is_world_process_zero": True,
    "is_hyper_param_search": False,
    "trial_name": None,
    "trial_params": None,
    "stateful_callbacks": {},
}
"""Further fields of `trainer_state.json`: those of Transformers 5.23, which digests of older checkpoints cover."""

LOSS_SUMS: Readback = {
    "tr_loss": 0.0,
    "total_loss_scalar": 0.0,
    "globalstep_last_logged": 0,
    "initial_global_step": 0,
    "current_flos": 0.0,
}
"""A Trainer averages its loss in these; a loop has no such sums, and its checkpoints hold zeros."""


@dataclass(eq=False)
class PlainLoop:
    """State of a script's own loop."""

    total_steps: int
    step: int = 0
    stopping: bool = False
    log_history: list[Readback] = field(default_factory=list)
    # Of the script's own data no bound is known.
    most_steps: int | None = None
    sample_order: "SampleOrder | None" = None
    stream_place: StreamPlace | None = None
    skipped: SkippedBatches = field(default_factory=SkippedBatches)
    # Of one step over all ranks, if the script takes its data by `TrainingSession.data_step`; else 0.
    global_batch_samples: int = 0
    step_was_skipped: bool = False
    log_every_steps: int = 1
    # Data of the run's sources, if the script takes `TrainingSession.samples()` of it.
    mixture: "MixtureDataset | None" = None

    def state(self) -> Readback:
        """Return the fields of `trainer_state.json`, as Transformers would write them."""
        return STATE | {"global_step": self.step, "max_steps": self.total_steps, "log_history": self.log_history}

    def loss_sums(self) -> Readback:
        """Return zeros: a loop has no sums of the loss."""
        return dict(LOSS_SUMS)

    def restore_loss_sums(self, saved: Readback) -> None:
        """Restore nothing."""

    @property
    def has_samples(self) -> bool:
        """True if the coming step has a batch, or needs none: only a mixture of sources that do not repeat ends."""
        return (
            self.mixture is None or self.mixture.may_be_empty or self.mixture.has(self.skipped.data_step(self.step + 1))
        )

    def redraw(self) -> None:
        """Do nothing: the script asks for its data before each step."""

    def reason_not_to_skip(self) -> str | None:
        """Return the reason why no batches can be left out of the script's data, or None."""
        if self.global_batch_samples:
            return None
        return (
            "no samples can be skipped, since this script's loop chooses its own: give its TrainingSession a "
            "sample_order and take session.samples(), or give global_batch_samples and read the data by "
            "session.data_step"
        )

    def skip(self, batches: int) -> None:
        """Leave out the next `batches` global batches: the script asks for its data before each step."""
        self.skipped.add(self.step, batches)

    def take_back_skip(self) -> None:
        """Undo the last `skip`."""
        self.skipped.take_back()

    def restore_skipped(self, saved: Sequence[Sequence[int]]) -> None:
        """Restore what was left out."""
        self.skipped.recall(saved)

    def script_state(self) -> Readback:
        """Return nothing: a loop has no callbacks."""
        return {}


class OwnSchedule:
    """Scheduler that the script steps by itself; its `step` is redirected to the steered one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self.step = scheduler, scheduler.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state, without the attributes that `lead_to` has set."""
        return {name: value for name, value in self._scheduler.state_dict().items() if not callable(value)}

    def lead_to(self, steered: SteeredSchedule) -> None:
        """Redirect `step` and `get_last_lr` of the scheduler to the steered one."""
        scheduler: Any = self._scheduler
        scheduler.step, scheduler.get_last_lr = steered.step, steered.get_last_lr


def live(
    loop: PlainLoop,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: "DeepSpeedEngine | None" = None,
    scheduler: Scheduler | None = None,
    *,
    saver: Saver | None = None,
    extensions: ScriptExtensions | None = None,
    limits: Mapping[str, Limit] | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> LiveTraining:
    """Return the live training of a loop whose scheduler is wrapped.

    Args:
        model, optimizer: with an engine, its own.
        scheduler: the one that the script or the engine steps, or None.
        is_stopping: whether a command has stopped the run.
    """
    partitions = Partitions(model, optimizer, engine)
    schedule = _steer(partitions.groups, engine, scheduler)
    knobs, extensions = Knobs(limits, lambda: schedule.names), extensions or ScriptExtensions()
    register_training_knobs(knobs, partitions, loop, saver, is_stopping)
    register_module_knobs(knobs, model)
    extensions.register_knobs(knobs)
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
        device=engine.device if engine is not None else next(iter(model.parameters())).device,
        global_batch_samples=global_batch_of(engine) or loop.global_batch_samples,
        accumulation_steps=engine.gradient_accumulation_steps() if engine is not None else 1,
        optimizer_name=type(getattr(engine, "basic_optimizer", optimizer)).__name__,
        schedule_name=type(scheduler).__name__ if scheduler is not None else None,
    )


def global_batch_of(engine: "DeepSpeedEngine | None") -> int:
    """Return the samples of one optimizer step over all ranks; 0 without an engine, which alone knows."""
    if engine is None:
        return 0
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return int(engine.train_micro_batch_size_per_gpu() * engine.gradient_accumulation_steps() * ranks)


def _steer(
    groups: Callable[[], ParamGroups], engine: "DeepSpeedEngine | None", scheduler: Scheduler | None
) -> SteeredSchedule:
    """Wrap the scheduler, and have it stepped where the script, or DeepSpeed's engine, steps one."""
    if scheduler is None:
        return SteeredSchedule(None, groups)
    outer: Any = scheduler if engine is not None and engine.lr_scheduler is scheduler else OwnSchedule(scheduler)
    inner = getattr(outer, "scheduler", outer)
    steered = SteeredSchedule(inner, groups)
    if engine is not None and engine.lr_scheduler is inner:
        engine.lr_scheduler = steered
    if inner is not outer:
        outer.scheduler = steered
    if isinstance(outer, OwnSchedule):
        outer.lead_to(steered)
    return steered
