"""DeepSpeed on CPU ranks: what accelerate and DeepSpeed need to be told there.

Read in accelerate 1.15: with DeepSpeed and no GPU, `PartialState` finds no backend and takes every rank for the only
one (`num_processes == 1`). Nothing fails; each rank trains on the same samples, and losses are not averaged. Naming
the backend that torch.distributed already uses is all that it lacks.

Read in DeepSpeed 0.19: its first start on CPUs compiles a shared-memory reduction, on every rank at once, for a minute
or so, and cannot start without a compiler. Only its inference uses it; training reduces over gloo either way.
"""

from typing import Any

import torch
import torch.distributed as dist

SHARED_MEMORY_REDUCTION = "deepspeed_shm_comm"


def prepare_cpu_ranks() -> None:
    """Patch accelerate and DeepSpeed in this process. Does nothing where there is a GPU.

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
        if backend is None and not cpu and dist.is_initialized():
            backend = dist.get_backend()
        return original(self, cpu, sagemaker_dp, backend)

    prepare_backend.knows_gloo = True  # type: ignore[attr-defined]
    return prepare_backend
