"""Live training: the objects of one training on one rank that commands change and checkpoints capture.

    hf.live.live(trainer, ...)      of a Transformers Trainer
    loop.live.live(loop, ...)       of a plain PyTorch or DeepSpeed loop

Made once per training, after the engine was built and its weights were loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from control_plane.core.model.records import Readback
from ray_jobs.rank.health_memory import HealthMemory
from ray_jobs.steering.actions import ScriptExtensions
from ray_jobs.steering.freezing import FrozenParameters
from ray_jobs.steering.knobs import Knobs
from ray_jobs.steering.partitions import Partitions
from ray_jobs.steering.schedule import ParamGroups, SteeredSchedule

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from ray_jobs.data.mixture.dataset import MixtureDataset
    from ray_jobs.data.sample_order import SampleOrder
    from ray_jobs.data.skipping import SkippedBatches, StreamPlace


class TrainingLoop(Protocol):
    """Mutable state of a training loop: of a Transformers Trainer, or of a script's own."""

    total_steps: int
    # The loop ends after the current step.
    stopping: bool

    @property
    def step(self) -> int:
        """Optimizer steps made since the beginning of the run, skipped ones included."""

    @property
    def most_steps(self) -> int | None:
        """Upper bound of `total_steps`; None for no bound."""

    @property
    def step_was_skipped(self) -> bool:
        """True if a gradient scaler skipped the last step. Only without DeepSpeed, which counts by itself."""

    @property
    def sample_order(self) -> "SampleOrder | None":
        """Sampler of the run, if it is ours."""

    @property
    def stream_place(self) -> "StreamPlace | None":
        """Position in a stream without a length; None for data with a length."""

    @property
    def skipped(self) -> "SkippedBatches":
        """Global batches that commands have left out of the data."""

    @property
    def mixture(self) -> "MixtureDataset | None":
        """Data of the run's sources, if samples are drawn from them by our order."""

    def redraw(self) -> None:
        """Have the next step take what the mixture has for it now, whatever was fetched before."""

    def reason_not_to_skip(self) -> str | None:
        """Return the reason why no batches can be left out of this data, or None."""

    def skip(self, batches: int) -> None:
        """Leave out the next `batches` global batches: the next step takes the one after them."""

    def take_back_skip(self) -> None:
        """Undo the last `skip`; no step was made since."""

    def restore_skipped(self, saved: Sequence[Sequence[int]]) -> None:
        """Restore from a checkpoint what was left out; the coming step takes the batch that is due."""

    @property
    def log_every_steps(self) -> int:
        """Steps from one logged loss to the next."""

    @property
    def log_history(self) -> list[Readback]:
        """Logged metrics, oldest first."""

    def state(self) -> Readback:
        """Return the fields of `trainer_state.json`."""

    def loss_sums(self) -> Readback:
        """Return the running sums of the loss, for a checkpoint."""

    def restore_loss_sums(self, saved: Readback) -> None:
        """Restore the running sums from a checkpoint."""

    def script_state(self) -> Readback:
        """Return the state of the script's own callbacks, for a checkpoint; empty if there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveTraining:
    """Live objects of one training on one rank."""

    model: torch.nn.Module
    # As the loop steps it: DeepSpeed's or accelerate's wrapper, or torch's own.
    optimizer: torch.optim.Optimizer
    engine: "DeepSpeedEngine | None"
    loop: TrainingLoop
    partitions: Partitions
    schedule: SteeredSchedule
    knobs: Knobs
    frozen: FrozenParameters
    extensions: ScriptExtensions
    device: torch.device
    # Of one optimizer step, over all ranks; 0 if unknown.
    global_batch_samples: int
    accumulation_steps: int
    # Class names, for the run's facts.
    optimizer_name: str
    schedule_name: str | None
    # Script state that a restart cannot restore exactly, in words.
    inexact: tuple[str, ...] = ()
    health: HealthMemory = field(default_factory=HealthMemory)

    def groups(self) -> ParamGroups:
        """Return the parameter groups that the next optimizer step reads."""
        return self.partitions.groups()

    def readings(self) -> Readback:
        """Return every value that can be steered, read from the live objects."""
        return self.schedule.readings() | self.knobs.readings() | (self.frozen.readings() if self.frozen.names else {})
