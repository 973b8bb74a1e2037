"""Elastic restore on another number of ranks, from DeepSpeed's universal checkpoint format, with proof by digest.

    engine.save_checkpoint(folder, tag="state", client_state=universal_checkpoint_info(engine))
    # converted by ray_jobs.checkpoint.convert; then, in a training on any number of ranks:
    load_universal(engine, root)                        # collective; `root` was verified

The proof is a digest of the consolidated state: of every parameter its fp32 weights, Adam's moments and Adam's step,
which is the same on any number of ranks. The converter records it, and a load with another digest is rejected on all
ranks.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from control_plane.core.model.errors import Damaged, Diverged, Invalid
from control_plane.storage.layout import STATE
from ray_jobs.process import deepspeed_internals

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CONSOLIDATED = f"{STATE}/consolidated.json"
"""Of a universal checkpoint: its ZeRO stage, the digest of its consolidated state, and its parameter groups."""

UNIVERSAL_CHECKPOINT_INFO = "universal_checkpoint_info"
"""DeepSpeed's own key; its converter refuses a ZeRO 1 or 2 checkpoint that lacks it."""

WEIGHTS, MOMENTS, STEP = "fp32", ("exp_avg", "exp_avg_sq"), "step"

Tensors = dict[str, torch.Tensor]
Groups = list[dict[str, Any]]


def universal_checkpoint_info(engine: "DeepSpeedEngine") -> dict[str, Any]:
    """Return the `client_state` entries of `engine.save_checkpoint` that the universal converter needs.

        engine.save_checkpoint(folder, tag=tag, client_state={**universal_checkpoint_info(engine), ...})

    Empty where DeepSpeed writes its own (tensor-parallel models, mixtures of experts): it would be overwritten.
    """
    from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_VERSION_KEY, UNIVERSAL_CHECKPOINT_VERSION_VALUE

    if getattr(engine.module, UNIVERSAL_CHECKPOINT_INFO, None) is not None or getattr(engine, "has_moe_layers", False):
        return {}
    return {UNIVERSAL_CHECKPOINT_INFO: {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}}


# --- Loading ---


def load_universal(engine: "DeepSpeedEngine", root: Path) -> None:
    """Collective. Load model, optimizer and DeepSpeed's scheduler from a universal checkpoint, and compare digests.

    The caller has verified `root`: loading unpickles. Not restored: the progress beside DeepSpeed's state, and
    `engine.micro_steps`, which is 0 in a new engine. Raises `Invalid` if the training is not the one that was saved
    (parameter groups, ZeRO stage), `Diverged` if the live state is not the saved one afterwards.
    """
    about = described(root)
    stage = int(engine.zero_optimization_stage())
    if (stage == 3) != (about["zero_stage"] == 3) or stage == 0:
        raise Invalid(f"{root.name} was saved with ZeRO {about['zero_stage']} and cannot be loaded with ZeRO {stage}")
    with deepspeed_internals.loading_universal(engine):
        loaded, _ = engine.load_checkpoint(str(root), tag=STATE)
    if loaded is None:
        raise Damaged(f"DeepSpeed found nothing to load in {root.name}")
    _separate_steps(engine)
    reassert_groups(engine, about["groups"])
    _load_unoptimized(engine, root)
    live = digest(consolidated(engine))
    if live != about["sha256"]:
        raise Diverged(f"the state loaded from {root.name} has the digest {live[:12]}, not {about['sha256'][:12]}")


def described(root: Path) -> dict[str, Any]:
    """Return the converter's record: `zero_stage`, `sha256`, `groups`. Raises `Damaged` if it cannot be read."""
    try:
        about = json.loads((root / CONSOLIDATED).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{CONSOLIDATED} of checkpoint {root.name} cannot be read: {error}") from None
    return dict(about)


def reassert_groups(engine: "DeepSpeedEngine", groups: Groups) -> None:
    """Set every hyper-parameter of every parameter group to what was saved for that group, and read it back.

    ZeRO 3's universal load copies those of group 0 into all groups, e.g. its weight decay to the biases. Raises
    `Invalid` if there are not as many groups, `Diverged` if the optimizer holds something else afterwards.
    """
    live = engine.optimizer.param_groups
    if len(live) != len(groups):
        raise Invalid(f"{len(groups)} parameter groups were saved, but this training has {len(live)}")
    for group, saved in zip(live, groups, strict=True):
        group.update({key: _from_json(value) for key, value in saved.items()})
    for index, (held, saved) in enumerate(zip(plain_groups(engine.optimizer.param_groups), groups, strict=True)):
        wrong = sorted(key for key in saved if held.get(key) != saved[key])
        if wrong:
            raise Diverged(f"{wrong[0]} of group {index} was set to {saved[wrong[0]]} and reads {held.get(wrong[0])}")


def plain_groups(groups: Groups) -> Groups:
    """Return each group without its parameters, as JSON: tuples become lists, one-element tensors numbers."""
    return [{key: _plain(value) for key, value in group.items() if key != "params"} for group in groups]


def _plain(value: object) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _from_json(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _separate_steps(engine: "DeepSpeedEngine") -> None:
    """Give each sub-group its own step tensor: ZeRO 3's universal load shares one, which each update would advance."""
    for state in deepspeed_internals.base_optimizer(engine).state.values():
        if isinstance(state.get(STEP), torch.Tensor):
            state[STEP] = state[STEP].clone()


def _load_unoptimized(engine: "DeepSpeedEngine", root: Path) -> None:
    """Load persistent buffers and frozen parameters, which a universal load leaves as the new model has them."""
    stored = engine.module.state_dict(keep_vars=True)
    live = {name: tensor for name, tensor in stored.items() if not tensor.requires_grad}
    if not live:
        return
    if frozen := sorted(name for name, tensor in live.items() if deepspeed_internals.is_partitioned(tensor)):
        raise Invalid(f"frozen parameters cannot change their number of ranks under ZeRO 3: {frozen[0]}")
    path = sorted((root / STATE).glob("*mp_rank_00_model_states.pt"))[0]
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["module"]
    for name, tensor in live.items():
        tensor.data.copy_(saved[name])


# --- The state, whatever the number of ranks ---


def consolidated(engine: "DeepSpeedEngine") -> Iterator[tuple[str, Tensors]]:
    """Collective. Yield name and full (gathered) state of each trained parameter, one at a time, by name.

    `fp32`, `exp_avg` and `exp_avg_sq` have the parameter's shape, `step` is Adam's, a scalar; all are copies on the
    CPU. What the optimizer does not have (yet) is left out. For ZeRO 0 (in fp32) to 3.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    deepspeed_internals.relink_moments(engine)
    states = deepspeed_internals.local_states(engine)
    for name, parameter in sorted((name, one) for one, name in engine.param_names.items() if one.requires_grad):
        local = states[parameter]
        keys = [key for key in MOMENTS if key in local]
        if engine.zero_optimization():
            whole = {WEIGHTS: safe_get_full_fp32_param(parameter)}
            whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
        else:
            whole = {WEIGHTS: parameter} | {key: local[key] for key in keys}
        if STEP in local:
            whole[STEP] = torch.tensor(float(local[STEP]))
        yield name, {key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in whole.items()}


def consolidated_files(root: Path) -> Iterator[tuple[str, Tensors]]:
    """Yield the same from the files of a universal checkpoint. Shapes may be flat; the digest is equal."""
    zero = root / STATE / "zero"
    about = torch.load(zero / "optimizer_state.pt", map_location="cpu", weights_only=False)
    shared = about.get("optimizer_state_dict", {}).get("state", {}).get(0, {}).get(STEP)
    for folder in sorted(path.parent for path in zero.glob("*/exp_avg.pt")):
        whole = {key: _tensor_of(folder / f"{key}.pt") for key in (WEIGHTS, *MOMENTS)}
        step = torch.load(folder / "step.pt", weights_only=False) if (folder / "step.pt").exists() else shared
        if step is not None:
            whole[STEP] = torch.tensor(float(step))
        yield folder.name, whole


def digest(states: Iterable[tuple[str, Tensors]]) -> str:
    """Return SHA-256 over names, keys and values, not shapes; -0.0 counts as 0.0: gathering loses the sign."""
    hashed = hashlib.sha256()
    for name, tensors in states:
        for key in sorted(tensors):
            values = (tensors[key].detach().flatten().to(torch.float32) + 0.0).contiguous()
            hashed.update(f"{name}\0{key}\0{values.numel()}\0".encode())
            hashed.update(values.numpy().data)
    return hashed.hexdigest()


def _tensor_of(path: Path) -> torch.Tensor:
    value = torch.load(path, map_location="cpu", weights_only=False)
    return value["param"] if isinstance(value, dict) else value
