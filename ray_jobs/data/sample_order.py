"""Deterministic sample order, a pure function of (seed, epoch, index), and token blocks to apply it to.

    dataset = TokenBlocks(token_ids, block_size=128)
    sampler = SampleOrder(len(dataset), seed=7)  # the same order on every rank, whatever the world size
    sampler.set_epoch(1)

Each rank takes its shard of the same order, so a resized run continues with the samples that were due.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from control_plane.core.model.errors import Invalid

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """Documents for training and for evaluation."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]

    def digest(self) -> str:
        """Return the SHA-256 over the documents, their bounds and the split, in hexadecimal."""
        digest = hashlib.sha256()
        for split in (self.train, self.evaluation):
            digest.update(len(split).to_bytes(8, "big"))
            for document in split:
                text = document.encode("utf-8")
                digest.update(len(text).to_bytes(8, "big"))
                digest.update(text)
        return digest.hexdigest()


def sample_order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Return the permutation of `range(n)` in which epoch `epoch` (from 0) visits the samples: shape `(n,)`.

    Sorts the raw output of a counter-based generator, whose stream NumPy keeps fixed between versions;
    the stream of `Generator.permutation` it does not.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int64)


class SampleOrder(Sampler[int]):
    """Sampler over `sample_order`. The Trainer calls `set_epoch` at the start of an epoch.

    With `global_batch_samples` an epoch is cut to whole global batches, so that step `k` consumes the same samples on
    any number of ranks; the samples left out differ from epoch to epoch. With `keeps_the_tail` they make one more step,
    which is filled up by rules that depend on the number of ranks. Raises `Invalid` if the samples do not fill one
    global batch and the tail is not kept.
    """

    def __init__(self, n: int, seed: int, global_batch_samples: int = 1, keeps_the_tail: bool = False) -> None:
        if n < global_batch_samples and not keeps_the_tail:
            raise Invalid(f"{n} samples do not fill a global batch of {global_batch_samples}")
        self.n = n
        self.seed = seed
        self.epoch = 0
        self._length = n if keeps_the_tail else n // global_batch_samples * global_batch_samples
        self.global_batch_samples = global_batch_samples
        # Cache of the last epoch that `batch` was called for, and its order, which takes long to compute.
        self._cached: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def left_out(self) -> int:
        """Number of samples per epoch that do not fill a global batch and are dropped."""
        return self.n - self._length

    @property
    def has_a_tail(self) -> bool:
        """True if an epoch ends with a smaller batch."""
        return self._length % self.global_batch_samples > 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sample indices of the global batch of optimizer step `step` (from 1), in order."""
        epoch, at = divmod(step - 1, -(-self._length // self.global_batch_samples))
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, sample_order(self.seed, epoch, self.n)
        first = at * self.global_batch_samples
        return self._cached[1][first : first + self.global_batch_samples]

    def __iter__(self) -> Iterator[int]:
        return iter(sample_order(self.seed, self.epoch, self.n)[: self._length].tolist())


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """Dataset of packed tokens in blocks: sample `i` is `input_ids` and equal `labels`, int64, shape `(block_size,)`.

    The model shifts the labels by one. An incomplete block at the end is not used.
    """

    def __init__(self, ids: Ids, block_size: int) -> None:
        self.block_size = block_size
        self.blocks = ids[: len(ids) // block_size * block_size].reshape(-1, block_size)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self.blocks[index].astype(np.int64))
        return {"input_ids": block, "labels": block.clone()}


def unigram_entropy(ids: Ids) -> float:
    """Return the entropy of the token frequencies, in nats per token: `-sum(p * ln p)` with `p = count / len(ids)`.

    It is a lower bound of the loss of any model that ignores the context, so a lower loss on these tokens shows that
    the model uses the context. For the evaluation split, compare it with the evaluation loss.
    """
    counts = np.bincount(ids)
    frequencies = counts[counts > 0] / len(ids)
    return float(-(frequencies * np.log(frequencies)).sum())


def cache_folder() -> Path:
    """Return the folder for derived files: `cache` in `$STEERWAY_HOME`, by default `~/.steerway`."""
    home = os.environ.get("STEERWAY_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".steerway") / "cache"
