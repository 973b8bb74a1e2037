"""Partitions: the part of a parameter's master weights that this rank's optimizer steps, for ZeRO 0 to 3.

    plain, ZeRO 0   the parameter itself
    ZeRO 1, 2       a range of a flat fp32 tensor, one such tensor for each parameter group; some ranks have none
    ZeRO 3          a range too, of which the last rank's may exceed the parameter's end: that part is padding

The optimizer's state has tensors of the same shape as the tensor it steps; the same range of those is the parameter's
state, for any optimizer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ray_jobs.process import deepspeed_internals
from ray_jobs.steering.schedule import ParamGroups

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHTS = "weights"
"""Key of the master weights in `Partition.tensors`; other keys are the optimizer's own."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Partition:
    """Partition of a parameter: elements `start` to `start + size` of `owner`, a tensor that the optimizer steps.

    The first of them is element `first` of the parameter; sizes are in elements.
    """

    owner: torch.Tensor
    start: int
    first: int
    size: int

    def tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """Return views of the partition in the live master weights and in each state of the same shape."""
        whole = {WEIGHTS: self.owner} | {
            key: value
            for key, value in optimizer.state.get(self.owner, {}).items()
            if isinstance(value, torch.Tensor) and value.shape == self.owner.shape and value.dim() > 0
        }
        return {key: self._view(tensor.detach()) for key, tensor in whole.items()}

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        # A parameter that is stepped as a whole may have any strides; what is cut is flat.
        return tensor if self.size == tensor.numel() else tensor.narrow(0, self.start, self.size)


@dataclass(frozen=True, slots=True)
class Partitions:
    """Partitions of one model's parameters on this rank. `optimizer` is the outermost one that is stepped."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    engine: "DeepSpeedEngine | None" = None
    is_fsdp: bool = False

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """Torch's optimizer inside the wrappers of accelerate and DeepSpeed."""
        optimizer = self.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return optimizer

    def groups(self) -> ParamGroups:
        """Return the parameter groups that the next optimizer step reads."""
        return self.optimizer.param_groups

    def of(self, parameter: torch.Tensor) -> Partition | None:
        """Return this rank's partition of a trained parameter, or None. Raises `LookupError` if no rank has one."""
        if deepspeed_internals.is_partitioned(parameter):
            return Partition(*deepspeed_internals.stage_3_range(self.optimizer, parameter))
        optimizer = self.torch_optimizer
        if deepspeed_internals.is_mapped(parameter):
            mapped = deepspeed_internals.mapped_range(parameter)
            if mapped is None:
                return None
            group, start, first, size = mapped
            (owner,) = optimizer.param_groups[group]["params"]
            return Partition(owner, start, first, size)
        if any(parameter is held for group in optimizer.param_groups for held in group["params"]):
            return Partition(parameter, 0, 0, parameter.numel())
        raise LookupError("the optimizer does not hold it")

    def reason_not_writable(self) -> str | None:
        """Return the reason why parameters of this run cannot be frozen or reset, or None."""
        if self.is_fsdp:
            return (
                "this run shards its parameters with FSDP; freezing and resetting are for a plain Trainer and DeepSpeed"
            )
        optimizer = self.torch_optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            return (
                f"this run's {type(optimizer).__name__} is not an optimizer of torch, and its steps cannot be watched"
            )
        if self.engine is None:
            return None
        return deepspeed_internals.reason_not_writable(self.engine, optimizer)
