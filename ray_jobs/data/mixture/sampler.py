"""Sampler of a mixture for a Trainer, which has epochs where the mixture has none."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.dataset import MixtureDataset


class MixtureSampler(Sampler[Any]):
    """Sampler of a mixture for a Trainer, whose epochs are as long as the first shards, in whole global batches.

    The mixture has no epochs: the next one goes on where this one ends. `skip` says how many batches of an epoch are
    passed over: for those nothing is drawn.
    """

    def __init__(self, data: MixtureDataset, global_batch_samples: int) -> None:
        """Raises `Invalid` for data that may be empty."""
        if data.may_be_empty:
            raise Invalid("a Trainer needs a sample for each step: its mixture cannot be one that may be empty")
        self.data, self.epoch, self.skip = data, 0, 0
        data.global_batch_samples = global_batch_samples
        self._batches = max(1, len(data) // global_batch_samples)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is iterated next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches * self.data.global_batch_samples

    def __iter__(self) -> Iterator[Any]:
        first, skip = self.epoch * self._batches + 1, self.skip
        for _ in range(skip * self.data.global_batch_samples):
            yield None
        for number in range(first + skip, first + self._batches):
            if not self.data.has(number):
                return
            yield from self.data.batch(number)
