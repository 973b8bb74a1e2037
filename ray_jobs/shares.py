"""Which stretch of a parameter's master weights this rank's optimizer steps, for a plain Trainer and ZeRO 0 to 3.

    plain, ZeRO 0   the parameter itself
    ZeRO 1, 2       a stretch of a flat fp32 tensor, one such tensor for each parameter group; some ranks have none
    ZeRO 3          one too, of which the last rank's may run over the parameter's end: that part is padding

The optimizer's state has tensors of the same shape as the tensor it steps; the same stretch of those is the
parameter's state, whatever the optimizer.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch

WEIGHTS = "weights"
"""Among the tensors of a share, the master weights; the others go by the optimizer's own names."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Share:
    """Elements `start` to `start + size` of `owner`, a tensor that the optimizer steps, are those of a parameter.

    The first of them is element `first` of the parameter; sizes are in elements.
    """

    owner: torch.Tensor
    start: int
    first: int
    size: int

    def tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """Views of the master weights and of each state of the same shape, as they lie in the live optimizer."""
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
    """The optimizer whose `step` moves the weights, inside of what accelerate and DeepSpeed wrap around it."""
    engine = getattr(trainer, "deepspeed", None)
    optimizer = engine.optimizer if engine is not None else trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return cast(torch.optim.Optimizer, optimizer)


def share_of(trainer: Any, parameter: Any) -> Share | None:
    """This rank's share of a trained parameter, or None if it has none. Raises `LookupError` if nobody has one."""
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
    """Which part of a parameter this rank has under ZeRO 3, from 0."""
    return int(zero._get_param_partition_rank(parameter))


def obstacle(trainer: Any) -> str | None:
    """Why the parameters of this run cannot be kept or replaced, or None: a sentence."""
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
    """How many elements a parameter has, also where only a part of it is here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape_of(parameter: Any) -> torch.Size:
    """The shape of the whole parameter, also where only a part of it is here."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
