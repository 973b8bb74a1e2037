"""DeepSpeed on CPU ranks: make accelerate see all of them.

Read in accelerate 1.15: with DeepSpeed and no GPU, `PartialState` finds no backend and takes every rank for the only
one (`num_processes == 1`). Nothing fails; each rank trains on the same samples, and losses are not averaged. Naming
the backend that torch.distributed already uses is all that it lacks.
"""

from typing import Any

import torch
import torch.distributed as dist


def show_ranks_to_accelerate() -> None:
    """Patch accelerate in this process. Does nothing where there is a GPU, or twice."""
    from accelerate.state import PartialState

    original = PartialState._prepare_backend
    if torch.cuda.is_available() or getattr(original, "knows_gloo", False):
        return

    def prepare_backend(self: Any, cpu: bool = False, sagemaker_dp: Any = False, backend: str | None = None) -> Any:
        if backend is None and not cpu and dist.is_initialized():
            backend = dist.get_backend()
        return original(self, cpu, sagemaker_dp, backend)

    prepare_backend.knows_gloo = True  # type: ignore[attr-defined]
    PartialState._prepare_backend = prepare_backend
