"""Patches of accelerate and DeepSpeed for ranks on CPUs.

Read in accelerate 1.15: without a GPU `PartialState` finds no backend and takes every rank for the only one
(`num_processes == 1`). Nothing fails; each rank trains on the same samples, and gradients are not averaged. With
DeepSpeed, it suffices to name the backend that torch.distributed already uses. Without DeepSpeed, a backend alone
makes ranks that share the samples but not the gradients: there `cpu` must be passed as well, as a script's `use_cpu`
does, so that the model is wrapped in DistributedDataParallel.

Read in DeepSpeed 0.19: its first start on CPUs compiles a shared-memory reduction, on every rank at once, for a minute
or so, and cannot start without a compiler. Only its inference uses it; training reduces over gloo either way.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from control_plane.core.model.errors import Invalid

if TYPE_CHECKING:
    from transformers import TrainingArguments

APART = ("not_parallel", "not_distributed")
SHARED_MEMORY_REDUCTION = "deepspeed_shm_comm"


def prepare_cpu_ranks() -> None:
    """Patch accelerate and DeepSpeed in this process. Does nothing if there is a GPU. Idempotent.

    DS_ACCELERATOR must be set before: this imports DeepSpeed.
    """
    if torch.cuda.is_available():
        return
    import deepspeed.ops
    from accelerate.state import PartialState

    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_REDUCTION] = False
    PartialState._prepare_backend = _knowing_gloo(PartialState._prepare_backend)


def _knowing_gloo(original: Any) -> Any:
    if getattr(original, "knows_gloo", False):
        return original

    def prepare_backend(self: Any, cpu: bool = False, sagemaker_dp: Any = False, backend: str | None = None) -> Any:
        if cpu or not dist.is_initialized():
            return original(self, cpu, sagemaker_dp, backend)
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            return original(self, cpu, sagemaker_dp, backend or dist.get_backend())
        return original(self, True, sagemaker_dp, backend)

    prepare_backend.knows_gloo = True  # type: ignore[attr-defined]
    return prepare_backend


def check_data_parallel(args: "TrainingArguments") -> None:
    """Raise `Invalid` unless accelerate is set up for data parallelism over all ranks."""
    ranks = dist.get_world_size()
    if args.world_size != ranks:
        raise Invalid(
            f"accelerate has a world size of {args.world_size}, but torch.distributed has {ranks} ranks: each rank "
            "would train on the same samples"
        )
    mode = getattr(getattr(args, "parallel_mode", None), "value", None)
    if ranks > 1 and mode in APART:
        raise Invalid(
            f"accelerate's parallel mode is {mode} on {ranks} ranks: gradients would not be averaged, and each rank "
            "would train a model of its own"
        )
