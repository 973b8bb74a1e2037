"""Private attributes of DeepSpeed's engine, optimizers and parameters, in one place. Read in DeepSpeed 0.19.8.

Under ZeRO 1 and 2 a parameter has an `_hp_mapping` to a range of a flat fp32 tensor, and under ZeRO 3 a `ds_id` and its
partition `ds_tensor`. Public methods of the engine are called where they are needed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine


# --- Parameters ---


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Return whether ZeRO 3 has partitioned this parameter."""
    return hasattr(parameter, "ds_id")


def elements(parameter: torch.Tensor) -> int:
    """Return the number of elements of the whole parameter, also where it is partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of the whole parameter, also where it is partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def held_tensors(parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what this rank keeps of a parameter between steps: itself, or its partition under ZeRO 3.

    Small parameters are also kept whole; others are whole now and then, for as long as somebody needs them.
    """
    partition: torch.Tensor | None = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return (parameter,)
    kept = getattr(parameter, "ds_persist", False) and parameter.numel() == elements(parameter)
    return (partition, parameter) if kept else (partition,)


def has_partitions(parameter: torch.Tensor) -> bool:
    """Return whether a flat tensor of this rank may hold a range of this parameter."""
    return is_partitioned(parameter) or getattr(parameter, "_hp_mapping", None) is not None


def is_mapped(parameter: torch.Tensor) -> bool:
    """Return whether ZeRO 1 or 2 maps this parameter to a flat tensor, of this rank or of another."""
    return hasattr(parameter, "_hp_mapping")


def mapped_range(parameter: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Return group, start in its flat tensor, first element of the parameter and size; None if on another rank."""
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    own, whole = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
    return int(mapping.param_group_index), own.start, whole.start, own.numel


def stage_3_range(zero: "DeepSpeedOptimizer", parameter: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """Return flat tensor, start in it, first element of the parameter and size. Raises `LookupError` if untrained."""
    position = zero.grad_position.get(zero.get_param_id(parameter))
    if position is None:
        raise LookupError("the optimizer does not hold it")
    group, start, size = position
    return zero.fp32_partitioned_groups_flat[group], start, partition_rank(zero, parameter) * size, size


def partition_rank(zero: "DeepSpeedOptimizer", parameter: torch.Tensor) -> int:
    """Return the index of this rank's partition of a parameter under ZeRO 3, from 0."""
    return int(zero._get_param_partition_rank(parameter))


# --- Optimizers ---


def keeps_state_on_nvme(optimizer: "DeepSpeedOptimizer | torch.optim.Optimizer") -> bool:
    """Return whether parameters or optimizer state are offloaded to NVMe."""
    return bool(getattr(optimizer, "swap_optimizer", False) or getattr(optimizer, "params_in_nvme_and_cpu", False))


def reason_not_writable(engine: "DeepSpeedEngine", optimizer: torch.optim.Optimizer) -> str | None:
    """Return the reason why weights and moments of this engine cannot be written between steps, or None."""
    zero = engine.optimizer
    if keeps_state_on_nvme(zero):
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


def stage_3_flat_tensors(optimizer: "DeepSpeedOptimizer | torch.optim.Optimizer") -> list[torch.Tensor] | None:
    """Return ZeRO 3's flat master weights, which the torch optimizer gets for the step only; None without ZeRO 3."""
    return getattr(optimizer, "fp32_partitioned_groups_flat", None)


def loss_scale(optimizer: "DeepSpeedOptimizer | torch.optim.Optimizer") -> dict[str, float] | None:
    """Return the numbers of the loss scaler, or None if there is none."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is None:
        return None
    return {key: value for key, value in vars(scaler).items() if isinstance(value, bool | int | float)}


def loss_scale_signs(engine: "DeepSpeedEngine") -> dict[str, float]:
    """Return `loss_scale` and `loss_scale_min` of an fp16 training; empty for any other."""
    if not engine.fp16_enabled():
        return {}
    optimizer = engine.optimizer
    scaler = getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
    found = {"loss_scale": getattr(scaler, "cur_scale", None), "loss_scale_min": getattr(scaler, "min_scale", None)}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def gradient_norm(engine: "DeepSpeedEngine | None") -> "torch.Tensor | float | None":
    """Return the global norm of the last step's gradient before clipping; None if DeepSpeed does not compute it."""
    return engine.get_global_grad_norm() if engine is not None else None


def watch_clipping(engine: "DeepSpeedEngine", note: "Callable[[torch.Tensor], None]") -> None:
    """Have the norm told that DeepSpeed clips by in fp32 without ZeRO, where it keeps it for itself."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        note(
            clip_grad_norm_(parameters=engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu)
        )

    engine.clip_fp32_gradients = clip


def step_overflowed(engine: "DeepSpeedEngine") -> bool:
    """Return whether the last step was skipped for an overflow; the same on all ranks."""
    return bool(getattr(engine.optimizer, "overflow", False))


def invalidate_secondary(engine: "DeepSpeedEngine | None") -> None:
    """Invalidate ZeRO++'s secondary copy of the weights within each node; it is made again from the first."""
    invalidate = getattr(engine.optimizer, "invalidate_secondary_tensor", None) if engine is not None else None
    if invalidate is not None:
        invalidate()


def clipping_places(engine: "DeepSpeedEngine") -> dict[str, tuple[object, str]]:
    """Return the attributes that hold the clipping norm, by name; the first one is in force."""
    config = {"the engine's gradient_clipping": (engine._config, "gradient_clipping")}
    if hasattr(engine.optimizer, "clip_grad"):
        return {"the ZeRO optimizer's clip_grad": (engine.optimizer, "clip_grad")} | config
    return config


def can_clip(engine: "DeepSpeedEngine | None") -> bool:
    """Return whether gradients can be clipped: ZeRO 1 and 2 need gradient norms for it."""
    return bool(getattr(getattr(engine, "optimizer", None), "compute_grad_norm", True))


# --- Checkpoints ---


@contextmanager
def saving_into(engine: "DeepSpeedEngine", other: "Callable[[CheckpointEngine], CheckpointEngine]") -> Iterator[Any]:
    """Redirect `engine.save_checkpoint` to another checkpoint engine, made from its own; restored on exit."""
    theirs = engine.checkpoint_engine
    engine.checkpoint_engine = other(theirs)
    # Beside the state, rank 0 would put a script of DeepSpeed's into the folder.
    engine._copy_recovery_script = lambda folder: None
    try:
        yield engine.checkpoint_engine
    finally:
        engine.checkpoint_engine = theirs
        del engine._copy_recovery_script


@contextmanager
def loading_universal(engine: "DeepSpeedEngine") -> Iterator[None]:
    """Let `engine.load_checkpoint` load the universal format; only inside, as other loads are of plain checkpoints."""
    flag = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = flag


def relink_moments(engine: "DeepSpeedEngine") -> None:
    """Relink parameters to their moments: ZeRO 1 and 2 do it once, when only the first group has stepped."""
    if getattr(engine.optimizer, "_hp_optimizer_states_linked", False):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def base_optimizer(engine: "DeepSpeedEngine") -> torch.optim.Optimizer:
    """Return the torch optimizer that a ZeRO optimizer wraps."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def local_states(engine: "DeepSpeedEngine") -> dict[torch.Tensor, dict[str, Any]]:
    """Return, for each trained parameter, the optimizer state of this rank's flat tensor with a partition of it."""
    zero, base = engine.optimizer, base_optimizer(engine)
    if not engine.zero_optimization():
        return {one: base.state[one] for group in base.param_groups for one in group["params"]}
    if engine.zero_optimization_stage() == 3:
        flats, members = zero.fp32_partitioned_groups_flat, zero.fp16_groups
    else:
        flats = [group["params"][0] for group in base.param_groups]
        members = zero.bf16_groups if hasattr(zero, "bf16_groups") else zero.bit16_groups
    return {one: base.state[flat] for flat, group in zip(flats, members, strict=True) for one in group}


# --- Configuration and the end ---


def config_of(engine: "DeepSpeedEngine") -> Mapping[str, Any] | None:
    """Return the engine's config as it was given, or None."""
    config = getattr(getattr(engine, "_config", None), "_param_dict", None)
    return config if isinstance(config, Mapping) else None


def forget_module(module: torch.nn.Module) -> None:
    """Remove the model from what ZeRO 3 keeps for the whole process, which would keep its hooks and the engine alive:
    a list of modules, and a cache of a method's results, whose keys are the engine's parts and the model's modules."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [held for held in stack if held is not module]
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        # The cache lies in the closure of a wrapper.
        for held in (method, *(cell.cell_contents for cell in getattr(method, "__closure__", None) or ())):
            if hasattr(held, "cache_clear"):
                held.cache_clear()
