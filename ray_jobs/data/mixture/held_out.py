"""Losses of the sources on records that they hold out: the same records at each evaluation, spread over the ranks.

    told = held_out_losses(data, losses_of, ranks, batch_samples=8)
    told["eval_loss/web"], told["eval_error/web"], told["eval_loss/web/poems"]

A batch is of one source, so that a model that can only tell the mean loss of a batch can be evaluated, too. All ranks
make equally many batches, also where a model is sharded and each forward pass is a collective.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from control_plane.core.health.weak_spots import HELD_OUT_ERROR, HELD_OUT_LOSS
from ray_jobs.data.mixture.dataset import MAX_HELD_OUT, MixtureDataset
from ray_jobs.data.mixture.phase import Reference

MAX_NAME_CHARS = 64
"""Of a measurement's name. Sources and slices with longer ones are not told."""

MAX_SLICES = 16
"""Slices of a source that are told apart: the most frequent; the others are one, called `other`."""

MAX_SLICE_CHARS = 24
OTHER = "other"

LossesOf = Callable[[Sequence[Reference]], torch.Tensor]
"""Returns the loss of each sample, shape `(samples,)`, or their mean, shape `()`."""

T = TypeVar("T")


class Ranks(Protocol):
    """The ranks that share an evaluation."""

    @property
    def rank(self) -> int:
        """Number of this one."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    def all_gather(self, value: T) -> list[T]:
        """Collective. Return every rank's value, in rank order."""
        ...


class Alone:
    """A process that shares an evaluation with nobody."""

    rank, world_size = 0, 1

    def all_gather(self, value: T) -> list[T]:
        """Return the value."""
        return [value]


class _Sums:
    """Sum, sum of squares and number of some losses."""

    def __init__(self) -> None:
        self.total, self.squares, self.count = 0.0, 0.0, 0

    def add(self, losses: Sequence[float]) -> None:
        good = [loss for loss in losses if math.isfinite(loss)]
        self.total += math.fsum(good)
        self.squares += math.fsum(loss * loss for loss in good)
        self.count += len(good)


def held_out_losses(
    data: MixtureDataset, losses_of: LossesOf, ranks: Ranks, batch_samples: int, most: int = MAX_HELD_OUT
) -> dict[str, float]:
    """Collective. Return the mean loss of each source on its held-out records, and its standard error.

    Sources with `slices` tell them by slice, too. There is no standard error, and no slice, where `losses_of` tells the
    mean of a batch only; nor of a single record. A loss that is not finite is left out.

    Args:
        batch_samples: samples of a batch on one rank.
        most: records that are looked at of a source.
    """
    told: dict[str, float] = {}
    for source, references in data.order.held_out(most).items():
        if not references:
            continue
        slices = _slices(data, source, references)
        mine, by_sample = _of_this_rank(references, slices, losses_of, ranks, batch_samples)
        everyones = ranks.all_gather((mine, by_sample))
        has_each = all(one for _, one in everyones)
        for name in dict.fromkeys([source, *(f"{source}/{each}" for each in sorted(set(slices)) if each)]):
            sums = [found[name] for found, _ in everyones if name in found]
            if (has_each or name == source) and len(HELD_OUT_ERROR + name) <= MAX_NAME_CHARS:
                told |= _told(name, sums, has_each)
    return told


def _of_this_rank(
    references: Sequence[Reference], slices: Sequence[str], losses_of: LossesOf, ranks: Ranks, batch_samples: int
) -> tuple[dict[str, tuple[float, float, int]], bool]:
    """Return this rank's sums by name, and whether there was a loss for each sample."""
    sums: dict[str, _Sums] = {}
    has_each = True
    own = list(zip(references, slices, strict=True))[ranks.rank :: ranks.world_size]
    for number in range(-(-len(references) // (ranks.world_size * batch_samples))):
        batch = own[number * batch_samples : (number + 1) * batch_samples]
        # A rank without a sample goes through the model as the others do, and its losses do not count.
        losses = losses_of([reference for reference, _ in batch] or references[:1])
        if losses.numel() != max(1, len(batch)):
            has_each = False
            losses = losses.mean().expand(max(1, len(batch)))
        elif losses.dim() == 0:
            has_each = False
        values = losses.detach().double().reshape(-1).tolist()[: len(batch)]
        for (reference, name), value in zip(batch, values, strict=True):
            sums.setdefault(reference.source, _Sums()).add([value])
            if name:
                sums.setdefault(f"{reference.source}/{name}", _Sums()).add([value])
    return {name: (one.total, one.squares, one.count) for name, one in sums.items()}, has_each


def _told(name: str, sums: Sequence[tuple[float, float, int]], has_each: bool) -> dict[str, float]:
    total, squares, count = (math.fsum(one[at] for one in sums) for at in range(3))
    if not count:
        return {}
    mean = total / count
    told = {HELD_OUT_LOSS + name: mean}
    if has_each and count > 1:
        told[HELD_OUT_ERROR + name] = math.sqrt(max(0.0, squares - total * mean) / (count - 1) / count)
    return told


def _slices(data: MixtureDataset, source: str, references: Sequence[Reference]) -> list[str]:
    """Return the slice of each record as a part of a measurement's name; empty where the source has none."""
    field = data.order.settings[source].slices
    if field is None:
        return [""] * len(references)
    names = [slice_name(data.record(reference).get(field)) for reference in references]
    kept = {name for name, _ in sorted(Counter(names).items(), key=lambda one: (-one[1], one[0]))[:MAX_SLICES]}
    return [name if name in kept else OTHER for name in names]


def slice_name(value: object) -> str:
    """Return a field's value as the name of a slice: lower case, and `-` for what is no letter, digit, `.` or `_`."""
    name = re.sub(r"[^a-z0-9_.]+", "-", str(value).lower()).strip("-")[:MAX_SLICE_CHARS]
    return name or "none"
