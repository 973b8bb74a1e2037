"""Unsupported DeepSpeed features, rejected by name before a training begins.

    unsupported(config)         checks a DeepSpeed config: when it is submitted, and again before the script trains
    unsupported_engine(engine)  checks what only the script knows: the kind of engine, and its experts
    check(model, engine, ...)   checks both

docs/deepspeed.md has the whole table. Features that are not named here are passed through to DeepSpeed.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from control_plane.core.model.errors import Refused

if TYPE_CHECKING:
    from accelerate import ParallelismConfig
    from deepspeed import DeepSpeedEngine
    from torch import nn

PARTIAL = "its ranks hold parts of the model that checkpoints, digests and commands do not combine"
DATA = "it changes the order or the length of samples by a state of its own, which is not saved in checkpoints"
LOSSY = "it keeps copies or errors of its own beside the weights, which are not saved in checkpoints"
NVME = "state in files cannot be copied while training continues"
EXPERTS = "MoE layers of DeepSpeed"
OWN_JOB = "it starts or resizes trainings by itself"

MORE_THAN_ONE: dict[str, str] = {
    "pipeline.stages": f"pipeline parallelism: {PARTIAL}",
    "tensor_parallel.autotp_size": f"AutoTP: {PARTIAL}",
    "tensor_parallel.tp_size": f"tensor parallelism: {PARTIAL}",
    "sequence_parallel_size": f"Ulysses: {PARTIAL}",
    "zero_optimization.zero_hpz_partition_size": f"ZeRO++ (hpZ): {LOSSY}",
    "zero_optimization.mics_shard_size": f"MiCS: {PARTIAL}",
}
"""Rejected if greater than one."""

SWITCHED_ON: dict[str, str] = {
    "zero_optimization.zero_quantized_weights": f"ZeRO++ (qwZ): {LOSSY}",
    "zero_optimization.zero_quantized_nontrainable_weights": f"ZeRO++ (quantized frozen weights): {LOSSY}",
    "zero_optimization.zero_quantized_gradients": f"ZeRO++ (qgZ): {LOSSY}",
    "zero_optimization.offload_optimizer.super_offload": f"SuperOffload: {LOSSY}",
    "data_efficiency.enabled": f"data efficiency: {DATA}",
    "curriculum_learning.enabled": f"curriculum learning: {DATA}",
    "progressive_layer_drop.enabled": "progressive layer drop: the choice of dropped layers is not restored",
    "hybrid_engine.enabled": "the hybrid engine: it alternates training and generation, outside of the run's steps",
    "elasticity.enabled": f"DeepSpeed's elasticity: {OWN_JOB}; use scaling.min_ranks and scaling.max_ranks",
    "autotuning.enabled": f"autotuning: {OWN_JOB}",
    "amp.enabled": "apex amp: its state is not restored; use bf16 or fp16",
    "quantize_training.enabled": f"quantized training: {LOSSY}",
    "eigenvalue.enabled": f"eigenvalues for quantized training: {LOSSY}",
    "compile.deepcompile": "DeepCompile: it rewrites the model's graph around what commands and checkpoints read",
}
"""Rejected if true."""

OPTIMIZERS: dict[str, str] = {name: f"{name}: {LOSSY}" for name in ("OneBitAdam", "ZeroOneAdam", "OneBitLamb")}


def check(
    model: "nn.Module",
    engine: "DeepSpeedEngine | None",
    config: Mapping[str, Any] | None = None,
    parallel: "ParallelismConfig | None" = None,
) -> None:
    """Raise `Refused` if the training uses an unsupported feature. `parallel`: accelerate's settings."""
    reasons = unsupported(config) if isinstance(config, Mapping) else []
    if engine is not None and (reason := unsupported_engine(engine)):
        reasons.append(reason)
    for size, name in (("sp_size", "Ulysses"), ("tp_size", "tensor parallelism"), ("cp_size", "context parallelism")):
        if getattr(parallel, size, 1) > 1:
            reasons.append(f"parallelism_config has {name}, which a run does not support: {PARTIAL}")
    if any(type(module).__module__.startswith("deepspeed.moe") for module in model.modules()):
        reasons.append(f"the model has experts ({EXPERTS}), which a run does not support: {PARTIAL}")
    if reasons:
        raise Refused("; ".join(dict.fromkeys(reasons)))


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a run cannot train with this config, one for each key; empty if it can."""
    return [f"{key} is {value!r}, which a run does not support: {why}" for key, value, why in _unsupported_keys(config)]


def _unsupported_keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for key, why in MORE_THAN_ONE.items():
        value = _at(config, key)
        if isinstance(value, int | float) and value > 1:
            yield key, value, why
    for key, why in SWITCHED_ON.items():
        if (value := _at(config, key)) is True:
            yield key, value, why
    for part in ("offload_optimizer", "offload_param"):
        if (value := _at(config, f"zero_optimization.{part}.device")) == "nvme":
            yield f"zero_optimization.{part}.device", value, f"ZeRO-Infinity: {NVME}; use cpu"
    if _at(config, "zero_optimization.zenflow") is not None:
        yield "zero_optimization.zenflow", "given", "ZenFlow: its optimizer steps outlast the run's"
    kind = _at(config, "optimizer.type")
    known = {name.lower(): why for name, why in OPTIMIZERS.items()}
    if isinstance(kind, str) and kind.lower() in known:
        yield "optimizer.type", kind, known[kind.lower()]
    compression = _at(config, "compression_training")
    if isinstance(compression, Mapping) and any(_is_on(part) for part in compression.values()):
        yield "compression_training", "given", f"compression: {LOSSY}"


def unsupported_engine(engine: "DeepSpeedEngine") -> str | None:
    """Return the reason why a run cannot train with this engine, or None."""
    if any(base.__name__ == "PipelineEngine" for base in type(engine).__mro__):
        return f"the engine is a PipelineEngine, which a run does not support: pipeline parallelism: {PARTIAL}"
    if getattr(engine, "has_moe_layers", False):
        return f"the model has experts ({EXPERTS}), which a run does not support: {PARTIAL}"
    from ray_jobs.process.deepspeed_internals import config_of  # imports torch, which a submitter may not have

    config = config_of(engine)
    return next(iter(unsupported(config)), None) if config is not None else None


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_on(part: object) -> bool:
    """Return whether a compression technique has `enabled`, in its shared parameters or by itself."""
    if not isinstance(part, Mapping):
        return False
    return part.get("enabled") is True or any(_is_on(inner) for inner in part.values())
