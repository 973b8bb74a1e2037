"""Training loss of each source of a mixture: sums over this rank's samples of a step, by what the order says they are.

    losses.begin(step)                  before a step: measured at every `SOURCE_STEPS`-th one
    losses.add(references, per_sample)  in the step, once a micro-batch
    taken = losses.take()               at its boundary; values on a device are on their way

All ranks make the same changes of the sources at the same boundary, so a place in the sums means one source on all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from control_plane.core.model.data import MAX_SOURCES
from ray_jobs.data.mixture.phase import Sample
from ray_jobs.health.device_values import HostCopy
from ray_jobs.rank.live_training import LiveTraining

SOURCE_STEPS = 10
"""Steps from one measurement to the next: a second look at the logits costs a share of a step's forward pass."""

LONGEST_NAME = 64 - len("source_samples/")
"""Sources with longer names are not measured: a measurement's name has at most 64 characters."""

PLACES = MAX_SOURCES
"""Sources that the ranks' vector has room for."""


@dataclass(frozen=True, slots=True)
class SourceSums:
    """Sums of one step on this rank: sources by place, and their losses' sums, then their numbers of samples.

    drawn: on rank 0, samples that each source has given up to and with this step.
    """

    names: tuple[str, ...]
    copy: HostCopy
    drawn: tuple[int, ...] = ()


class SourceLosses:
    """Losses by source of one training on one rank. Nothing here waits for a device, and nothing is a collective."""

    def __init__(self, training: LiveTraining, is_first_rank: bool) -> None:
        self._training, self._is_first_rank = training, is_first_rank
        self._step: int | None = None
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._references: list[Sample] | None = None

    @property
    def is_due(self) -> bool:
        """True in a step whose losses are measured."""
        return self._step is not None

    def begin(self, step: int) -> None:
        """Choose whether the coming step is measured. `step`: its number."""
        mixture = self._training.loop.mixture
        is_due = mixture is not None and step % SOURCE_STEPS == 0
        self._step, self._sums, self._references = (step if is_due else None), None, None
        self._names = mixture.order.names[:PLACES] if is_due and mixture is not None else ()

    def of_step(self) -> list[Sample]:
        """Return the records of the measured step's global batch, in order; empty where none is measured."""
        loop = self._training.loop
        if self._step is None or loop.mixture is None:
            return []
        if self._references is None:
            number = loop.skipped.data_step(self._step)
            self._references = loop.mixture.batch(number) if loop.mixture.has(number) else []
        return self._references

    @torch.no_grad()
    def add(self, references: Sequence[Sample], losses: torch.Tensor) -> None:
        """Add the losses of samples of this step. `losses`: one a reference; one that is not finite is left out."""
        if self._step is None or not references or losses.numel() != len(references):
            return
        places = {name: place for place, name in enumerate(self._names)}
        at = torch.tensor([places.get(reference.source, PLACES) for reference in references], device=losses.device)
        values = losses.detach().reshape(-1).float()
        is_good = torch.isfinite(values) & (at < PLACES)
        at, size = at.clamp(max=max(0, len(self._names) - 1)), len(self._names)
        if self._sums is None:
            self._sums = torch.zeros(2 * size, device=losses.device)
        self._sums.index_add_(0, at, torch.where(is_good, values, torch.zeros_like(values)))
        self._sums.index_add_(0, at + size, is_good.float())

    def take(self) -> SourceSums | None:
        """Return the sums of the step that is over, and end the measurement; None if nothing was measured."""
        step, sums, loop = self._step, self._sums, self._training.loop
        self._step, self._sums, self._references = None, None, None
        if step is None or sums is None:
            return None
        drawn: tuple[int, ...] = ()
        if self._is_first_rank and loop.mixture is not None:
            courses = loop.mixture.order.courses(loop.skipped.data_step(step) * loop.mixture.global_batch_samples)
            drawn = tuple(courses[name].drawn if name in courses else 0 for name in self._names)
        return SourceSums(self._names, HostCopy(sums), drawn)
