"""Digests of this rank's live state, part by part, for comparing two runs bit for bit.

take(trainer, session)     after a boundary; no collective, nothing is changed

samples                               the ids of the step's global batch
random/NAME                           each generator
knobs/NAME, schedule, script          what is steered, and what a script has put into its session's state
weights/NAME                          parameters and buffers, as far as this rank holds them
optimizer/NAME/master | exp_avg ...   master weights and the optimizer's state, by parameter where it has a share
                                      of a flat tensor, and by group where nobody has
"""

from collections.abc import Iterator
from typing import Any

import torch

from control_plane.storage.digest_files import RankDigest
from ray_jobs.checkpoint import loop_state
from ray_jobs.checkpoint.universal import plain_groups
from ray_jobs.digest.hashing import number_digest, tensor_digest, value_digest
from ray_jobs.rank.session import RankSession
from ray_jobs.steering.partitions import Share, share_of, step_optimizer
from ray_jobs.steering.schedule import live_groups

Digested = Iterator[tuple[str, str]]

NOT_TRAINING = frozenset({"logging_steps", "eval_steps", "checkpoint_steps", "total_steps"})
"""Knobs that do not change the steps: intervals of logging, evaluation and saving, and the length of the run."""

MASTER = "master"


def take(trainer: Any, session: RankSession) -> RankDigest:
    """Return the digest of this rank's live state. Raises `RuntimeError` if a part is offloaded to NVMe."""
    step = int(trainer.state.global_step)
    parts = {"samples": samples(trainer, step)}
    for digested in (random(), knobs(session), course(trainer), weights(trainer), optimizer(trainer)):
        parts |= digested
    return RankDigest(step, parts)


def samples(trainer: Any, step: int) -> str:
    """Return the digest of the global batch's sample ids at `step`; of the step alone if the sampler is not ours."""
    order = getattr(trainer, "_order", None)
    return value_digest(order.batch(step)) if order is not None and step > 0 else value_digest({"step": step})


def random() -> Digested:
    """Yield the digest of every random generator that training draws from."""
    for name, state in loop_state.random_state().items():
        # As text: each of 625 numbers by itself would take a millisecond.
        yield f"random/{name}", value_digest(repr(state) if name == "python" else state)


def knobs(session: RankSession) -> Digested:
    """Yield the digest of every knob's live value."""
    for name, reading in session.read_knobs().items():
        if name not in NOT_TRAINING:
            yield f"knobs/{name}", value_digest(reading)


def course(trainer: Any) -> Digested:
    """Yield digests of the learning-rate schedule with parameter groups, and of the script's own state."""
    schedule = getattr(trainer, "steered_schedule", None)
    own = {key: value for key, value in schedule.state_dict().items() if not callable(value)} if schedule else None
    steered = schedule.memory() if schedule is not None else None
    yield "schedule", value_digest([own, steered, plain_groups(live_groups(trainer)())])
    vocabulary = getattr(trainer, "own_vocabulary", None)
    if vocabulary is not None and (memory := vocabulary.memory()):
        yield "script", value_digest(memory)


def weights(trainer: Any) -> Digested:
    """Yield digests of parameters and buffers. Under ZeRO 3: this rank's partition, and small ones kept whole."""
    for name, parameter in trainer.model.named_parameters():
        yield f"weights/{name}", tensor_digest(*_held(parameter))
    for name, buffer in trainer.model.named_buffers():
        yield f"weights/{name}", tensor_digest(buffer)


def _held(parameter: Any) -> tuple[torch.Tensor, ...]:
    if not hasattr(parameter, "ds_tensor"):
        return (parameter,)
    # Others are whole now and then, for as long as somebody needs them: what counts is the part.
    kept = getattr(parameter, "ds_persist", False) and parameter.numel() == parameter.ds_numel
    return (parameter.ds_tensor, parameter) if kept else (parameter.ds_tensor,)


def optimizer(trainer: Any) -> Digested:
    """Yield digests of master weights and optimizer state. Raises `RuntimeError` if they are offloaded to NVMe."""
    zero = getattr(getattr(trainer, "deepspeed", None), "optimizer", None)
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        raise RuntimeError("this run keeps parameters or optimizer state on NVMe, where they cannot be digested")
    stepping = step_optimizer(trainer)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    shares = _shares(trainer)
    owners = list(_owners(zero, stepping))
    for label, owner in owners:
        own = names.get(id(owner))
        state = stepping.state.get(owner, {}) if own else {MASTER: owner} | stepping.state.get(owner, {})
        for key, value in state.items():
            yield from _entry(own or label, key, value, owner, shares.get(id(owner), []))
    seen = {id(owner) for _, owner in owners}
    others = [value_digest(state) for key, state in stepping.state.items() if id(key) not in seen]
    if others:
        yield "optimizer/others", value_digest(sorted(others))
    if (scaler := getattr(zero, "loss_scaler", None)) is not None:
        numbers = {key: value for key, value in vars(scaler).items() if isinstance(value, bool | int | float)}
        yield "optimizer/loss_scale", value_digest(numbers)


def _owners(zero: Any, stepping: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that the optimizer steps, each with a label for elements that belong to no parameter."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # ZeRO 3 lends them to the optimizer for the step only
        yield from ((f"group{index}", flat) for index, flat in enumerate(zero.fp32_partitioned_groups_flat))
        return
    for index, group in enumerate(stepping.param_groups):
        alone = len(group["params"]) == 1
        yield from (
            (f"group{index}" if alone else f"group{index}.{place}", owner)
            for place, owner in enumerate(group["params"])
        )


def _shares(trainer: Any) -> dict[int, list[tuple[str, Share]]]:
    """Return, by id of the flat tensor, the parameters' partitions in it, in order."""
    found: dict[int, list[tuple[str, Share]]] = {}
    for name, parameter in trainer.model.named_parameters():
        if hasattr(parameter, "ds_id") or getattr(parameter, "_hp_mapping", None) is not None:
            try:
                share = share_of(trainer, parameter)
            except LookupError:  # frozen since before the engine was built
                continue
            if share is not None:
                found.setdefault(id(share.owner), []).append((name, share))
    for shares in found.values():
        shares.sort(key=lambda each: each[1].start)
    return found


def _entry(label: str, key: str, value: Any, owner: torch.Tensor, shares: list[tuple[str, Share]]) -> Digested:
    """Yield digests of one entry of optimizer state, split by parameter where it is a flat tensor."""
    if not isinstance(value, torch.Tensor):
        is_number = isinstance(value, int | float)
        yield f"optimizer/{label}/{key}", number_digest(value) if is_number else value_digest(value)
    elif value.dim() == 0 and owner.dim() != 0:
        yield f"optimizer/{label}/{key}", number_digest(value)
    elif value.shape != owner.shape or not shares:
        yield f"optimizer/{label}/{key}", tensor_digest(value)
    else:
        yield from _cut(label, key, value, shares)


def _cut(label: str, key: str, flat: torch.Tensor, shares: list[tuple[str, Share]]) -> Digested:
    reached, gaps = 0, []
    for name, share in shares:
        gaps.append(flat.narrow(0, reached, share.start - reached))
        yield f"optimizer/{name}/{key}", tensor_digest(flat.narrow(0, share.start, share.size))
        reached = share.start + share.size
    gaps.append(flat.narrow(0, reached, flat.numel() - reached))
    if any(gap.numel() for gap in gaps):
        yield f"optimizer/{label}/{key}", tensor_digest(*gaps)
