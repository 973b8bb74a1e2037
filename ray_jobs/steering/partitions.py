"""Partitions: the part of a parameter's master weights that this rank's optimizer steps, for ZeRO 0 to 3.

    plain, ZeRO 0   the parameter itself
    ZeRO 1, 2       a range of a flat fp32 tensor, one such tensor for each parameter group; some ranks have none
    ZeRO 3          a range too, of which the last rank's may exceed the parameter's end: that part is padding

The optimizer's state has tensors of the same shape as the tensor it steps; the same range of those is the parameter's
state, for any optimizer.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch

WEIGHTS = "weights"
"""Key of the master weights in `Share.tensors`; other keys are the optimizer's own."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Share:
    """Partition of a parameter: elements `start` to `start + size` of `owner`, a tensor that the optimizer steps.

    The first of them is element `first` of the parameter; sizes are in elements.
    """

    owner: torch.Tensor
    start: int
    first: int
    size: int

    def tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """Return views of the partition in the live master weights and in each state of the same shape."""
        found = {WEIGHTS: self.owner} | {
            key: value
            for key, value in optimizer.state.get(self.owner, {}).items()
            if isinstance(value, torch.Tensor) and value.shape == self.owner.shape and value.dim() > 0
        }
        return {key: self._view(tensor.detach()) for key, tensor in found.items()}

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        # A parameter that is stepped as a whole may have any strides; what is cut is flat.
        return tensor if self.size == tensor.numel() else tensor.narrow(0, self.start, self.size)


def step_optimizer(trainer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside the wrappers of accelerate and DeepSpeed."""
    engine = getattr(trainer, "deepspeed", None)
    optimizer = engine.optimizer if engine is not None else trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return cast(torch.optim.Optimizer, optimizer)


def share_of(trainer: Any, parameter: Any) -> Share | None:
    """Return this rank's partition of a trained parameter, or None. Raises `LookupError` if no rank has one."""
    if hasattr(parameter, "ds_id"):
        return _stage_3_share(trainer.deepspeed.optimizer, parameter)
    optimizer = step_optimizer(trainer)
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        (owner,) = optimizer.param_groups[mapping.param_group_index]["params"]
        own, whole = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
        return Share(owner, own.start, whole.start, own.numel)
    if any(parameter is each for group in optimizer.param_groups for each in group["params"]):
        return Share(parameter, 0, 0, parameter.numel())
    raise LookupError("the optimizer does not hold it")


def _stage_3_share(zero: Any, parameter: Any) -> Share:
    position = zero.grad_position.get(zero.get_param_id(parameter))
    if position is None:
        raise LookupError("the optimizer does not hold it")
    group, start, size = position
    return Share(zero.fp32_partitioned_groups_flat[group], start, partition_rank(zero, parameter) * size, size)


def partition_rank(zero: Any, parameter: Any) -> int:
    """Return the index of this rank's partition of a parameter under ZeRO 3, from 0."""
    return int(zero._get_param_partition_rank(parameter))


def obstacle(trainer: Any) -> str | None:
    """Return the reason why parameters of this run cannot be frozen or reset, or None."""
    if getattr(trainer, "is_fsdp_enabled", False):
        return "this run shards its parameters with FSDP; freezing and resetting are for a plain Trainer and DeepSpeed"
    if not isinstance(optimizer := step_optimizer(trainer), torch.optim.Optimizer):
        return f"this run's {type(optimizer).__name__} is not an optimizer of torch, and its steps cannot be watched"
    engine = getattr(trainer, "deepspeed", None)
    if engine is None:
        return None
    zero = engine.optimizer
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        return "this run keeps parameters or optimizer state on NVMe, where they cannot be kept or replaced"
    if getattr(zero, "zenflow", False):
        return "this run's optimizer steps in the background (ZenFlow), and weights cannot be kept from that"
    if getattr(zero, "backup_optimizer", None) is not None:
        return "this run offloads a part of its optimizer only, so that two optimizers step; offload all of it or none"
    if any(group.get("use_muon") for group in zero.param_groups):
        return "Muon moves its momentum outside of the optimizer's step, and cannot be kept from that"
    if not engine.zero_optimization() and zero is not optimizer:
        kind = type(zero).__name__
        return f"this run trains in 16 bits without ZeRO, and its {kind} hides the master weights; use ZeRO 1, 2 or 3"
    return None


def elements(parameter: Any) -> int:
    """Return the number of elements of the whole parameter, also where it is partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape_of(parameter: Any) -> torch.Size:
    """Return the shape of the whole parameter, also where it is partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
