"""Micro-batch size and gradient accumulation that keep the global batch on any number of ranks.

    plan = plan_batch(global_batch_samples=48, micro_batch_per_rank=8, ranks=3)     # 8 at once, 2 times

An optimizer step always consumes the global batch, so the learning rate, the schedule and the step's number mean the
same on any number of ranks. What changes is accumulated: rank r of W takes micro-batch m * W + r of the step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.core.model.errors import Invalid

if TYPE_CHECKING:
    from transformers import TrainingArguments

SIZES_TOLD = 8
"""How many alternative numbers of ranks an error message names at most."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Micro-batch size and accumulation steps of each rank for one optimizer step."""

    micro_batch_per_rank: int
    accumulation_steps: int

    def global_batch_samples(self, ranks: int) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.micro_batch_per_rank * self.accumulation_steps * ranks


def global_batch_samples(args: "TrainingArguments") -> int:
    """Return the samples of one optimizer step over all ranks. `args`: Transformers' training arguments."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def plan_batch(
    global_batch_samples: int, micro_batch_per_rank: int, ranks: int, bounds: tuple[int, int] | None = None
) -> BatchPlan:
    """Return the plan that keeps the global batch on `ranks` ranks, with the largest micro-batch that divides a share.

    The micro-batch never exceeds `micro_batch_per_rank`, which is what fits into memory. Raises `Invalid` if the
    ranks do not divide the global batch; the message names numbers that do, within `bounds` (least, most) if given.
    """
    if min(global_batch_samples, micro_batch_per_rank, ranks) < 1:
        raise Invalid(
            f"the global batch ({global_batch_samples} samples), the micro-batch ({micro_batch_per_rank}) and the "
            f"number of ranks ({ranks}) must each be at least 1"
        )
    if global_batch_samples % ranks:
        raise Invalid(_refusal(global_batch_samples, ranks, bounds or (1, global_batch_samples)))
    share = global_batch_samples // ranks
    micro = next(size for size in range(min(micro_batch_per_rank, share), 0, -1) if share % size == 0)
    return BatchPlan(micro_batch_per_rank=micro, accumulation_steps=share // micro)


def possible_sizes(global_batch_samples: int, min_ranks: int, max_ranks: int) -> tuple[int, ...]:
    """Return the numbers of ranks from `min_ranks` to `max_ranks` that divide the global batch, ascending.

    The micro-batch does not matter: a smaller one is always found.
    """
    most = min(max_ranks, global_batch_samples)
    return tuple(ranks for ranks in range(max(1, min_ranks), most + 1) if global_batch_samples % ranks == 0)


def _refusal(global_batch_samples: int, ranks: int, bounds: tuple[int, int]) -> str:
    sizes = possible_sizes(global_batch_samples, *bounds)
    nearest = sorted(sorted(sizes, key=lambda size: (abs(size - ranks), size))[:SIZES_TOLD])
    which = "nearest possible" if len(sizes) > SIZES_TOLD else "possible"
    return (
        f"a global batch of {global_batch_samples} samples cannot be divided evenly among {ranks} ranks; {which} "
        f"numbers from {bounds[0]} to {bounds[1]} ranks: {', '.join(map(str, nearest)) or 'none'}"
    )
