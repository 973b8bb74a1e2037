"""Digests of this rank's live state, part by part, for comparing two runs bit for bit.

take(training, session)    after a boundary; no collective, nothing is changed

samples                               the ids of the step's global batch
random/NAME                           each generator
knobs/NAME, schedule, script          what is steered, and what a script has put into its session's state
weights/NAME                          parameters and buffers, as far as this rank holds them
optimizer/NAME/master | exp_avg ...   master weights and the optimizer's state, by parameter where it has a share
                                      of a flat tensor, and by group where nobody has
"""

from collections.abc import Iterator

import torch

from control_plane.storage.digest_files import RankDigest
from ray_jobs.checkpoint import loop_state
from ray_jobs.checkpoint.universal import plain_groups
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.data.skipping import SkippedBatches
from ray_jobs.digest.hashing import number_digest, tensor_digest, value_digest
from ray_jobs.process import deepspeed_internals
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.session import RankSession
from ray_jobs.steering.partitions import Partition, Partitions

Digested = Iterator[tuple[str, str]]

NOT_TRAINING = frozenset({"logging_steps", "eval_steps", "checkpoint_steps", "total_steps"})
"""Knobs that do not change the steps: intervals of logging, evaluation and saving, and the length of the run."""

MASTER = "master"


def take(training: LiveTraining, session: RankSession) -> RankDigest:
    """Return the digest of this rank's live state. Raises `RuntimeError` if a part is offloaded to NVMe."""
    step = training.loop.step
    parts = {"samples": samples(training.loop.sample_order, step, training.loop.skipped, training.loop.mixture)}
    state = (weights(training.model), optimizer(training.partitions))
    for digested in (random(), knobs(session), course(training), *state):
        parts |= digested
    return RankDigest(step, parts)


def samples(
    order: SampleOrder | None, step: int, skipped: SkippedBatches, mixture: MixtureDataset | None = None
) -> str:
    """Return the digest of the global batch's sample ids at `step`.

    If the sampler is not ours: of the step, and of the number of batches that were left out before it.
    """
    if mixture is not None and step > 0:
        return mixture.digest(skipped.data_step(step))
    if order is not None and step > 0:
        return value_digest(order.batch(skipped.data_step(step)))
    left_out = skipped.before(step)
    return value_digest({"step": step} | ({"skipped": left_out} if left_out else {}))


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


def course(training: LiveTraining) -> Digested:
    """Yield digests of the learning-rate schedule with parameter groups, and of the script's own state."""
    schedule = training.schedule
    own = {key: value for key, value in schedule.state_dict().items() if not callable(value)}
    yield "schedule", value_digest([own, schedule.memory(), plain_groups(training.groups())])
    if memory := training.extensions.memory():
        yield "script", value_digest(memory)


def weights(model: torch.nn.Module) -> Digested:
    """Yield digests of parameters and buffers. Under ZeRO 3: this rank's partition, and small ones kept whole."""
    for name, parameter in model.named_parameters():
        yield f"weights/{name}", tensor_digest(*deepspeed_internals.held_tensors(parameter))
    for name, buffer in model.named_buffers():
        yield f"weights/{name}", tensor_digest(buffer)


def optimizer(partitions: Partitions) -> Digested:
    """Yield digests of master weights and optimizer state. Raises `RuntimeError` if they are offloaded to NVMe."""
    if deepspeed_internals.keeps_state_on_nvme(partitions.optimizer):
        raise RuntimeError("this run keeps parameters or optimizer state on NVMe, where they cannot be digested")
    stepping = partitions.torch_optimizer
    names = {id(parameter): name for name, parameter in partitions.model.named_parameters()}
    by_owner = _by_owner(partitions)
    owners = list(_owners(partitions))
    for label, owner in owners:
        own = names.get(id(owner))
        state = stepping.state.get(owner, {}) if own else {MASTER: owner} | stepping.state.get(owner, {})
        for key, value in state.items():
            yield from _entry(own or label, key, value, owner, by_owner.get(id(owner), []))
    seen = {id(owner) for _, owner in owners}
    others = [value_digest(state) for key, state in stepping.state.items() if id(key) not in seen]
    if others:
        yield "optimizer/others", value_digest(sorted(others))
    scale = deepspeed_internals.loss_scale(partitions.optimizer) if partitions.engine is not None else None
    if scale is not None:
        yield "optimizer/loss_scale", value_digest(scale)


def _owners(partitions: Partitions) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that the optimizer steps, each with a label for elements that belong to no parameter."""
    flats = deepspeed_internals.stage_3_flat_tensors(partitions.optimizer)
    if flats is not None:
        yield from ((f"group{index}", flat) for index, flat in enumerate(flats))
        return
    for index, group in enumerate(partitions.torch_optimizer.param_groups):
        alone = len(group["params"]) == 1
        yield from (
            (f"group{index}" if alone else f"group{index}.{place}", owner)
            for place, owner in enumerate(group["params"])
        )


def _by_owner(partitions: Partitions) -> dict[int, list[tuple[str, Partition]]]:
    """Return, by id of the flat tensor, the parameters' partitions in it, in order."""
    by_owner: dict[int, list[tuple[str, Partition]]] = {}
    for name, parameter in partitions.model.named_parameters():
        if deepspeed_internals.has_partitions(parameter):
            try:
                partition = partitions.of(parameter)
            except LookupError:  # frozen since before the engine was built
                continue
            if partition is not None:
                by_owner.setdefault(id(partition.owner), []).append((name, partition))
    for members in by_owner.values():
        members.sort(key=lambda member: member[1].start)
    return by_owner


def _entry(label: str, key: str, value: object, owner: torch.Tensor, members: list[tuple[str, Partition]]) -> Digested:
    """Yield digests of one entry of optimizer state, split by parameter where it is a flat tensor."""
    if not isinstance(value, torch.Tensor):
        is_number = isinstance(value, int | float)
        yield f"optimizer/{label}/{key}", number_digest(value) if is_number else value_digest(value)
    elif value.dim() == 0 and owner.dim() != 0:
        yield f"optimizer/{label}/{key}", number_digest(value)
    elif value.shape != owner.shape or not members:
        yield f"optimizer/{label}/{key}", tensor_digest(value)
    else:
        yield from _cut(label, key, value, members)


def _cut(label: str, key: str, flat: torch.Tensor, members: list[tuple[str, Partition]]) -> Digested:
    reached, gaps = 0, []
    for name, partition in members:
        gaps.append(flat.narrow(0, reached, partition.start - reached))
        yield f"optimizer/{name}/{key}", tensor_digest(flat.narrow(0, partition.start, partition.size))
        reached = partition.start + partition.size
    gaps.append(flat.narrow(0, reached, flat.numel() - reached))
    if any(gap.numel() for gap in gaps):
        yield f"optimizer/{label}/{key}", tensor_digest(*gaps)
