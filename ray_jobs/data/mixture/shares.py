"""Shares of sources: how many of the samples of a block are of each source, in integers, on every machine alike.

    shares = whole_shares({"web": 0.7, "fresh": 0.3})      # of WHOLE, by largest remainder
    plan = BlockPlan(shares, seed)
    plan.counts(3)                                         # of block 3: shape (sources,), sums to BLOCK
    plan.before(3)                                         # of blocks 0, 1 and 2 together

A share is rarely a whole number of a block's samples. Each block rounds it up or down by a threshold that goes through
its range evenly from block to block, so that after any number of blocks each source is within a few samples of its
share, also one that has less than one sample in a block.
"""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

BLOCK = 256
"""Samples in a block: within it each source has its share, in a random order."""

BITS = 32
WHOLE = 1 << BITS
"""The sum of all shares."""

GOLDEN = 2_654_435_769
"""2**32 divided by the golden ratio: its multiples, modulo 2**32, fill the range evenly (Weyl's sequence)."""

CHUNK = 1024
"""Blocks whose counts are computed at a time."""

Counts = npt.NDArray[np.int64]


def whole_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Return each source's share of `WHOLE`, in proportion to its weight, by largest remainder; in the order of names.

    Raises `ValueError` if no weight is positive.
    """
    exact = {name: Fraction(weights[name]) for name in sorted(weights)}
    total = sum(exact.values())
    if total <= 0:
        raise ValueError("no source has a positive weight")
    ideal = {name: weight * WHOLE / total for name, weight in exact.items()}
    shares = {name: int(value) for name, value in ideal.items()}
    left = WHOLE - sum(shares.values())
    by_remainder = sorted(ideal, key=lambda name: (shares[name] - ideal[name], name))
    for name in by_remainder[:left]:
        shares[name] += 1
    return shares


class BlockPlan:
    """Counts of each source in the blocks of one phase. `seed` shifts the thresholds."""

    def __init__(self, shares: Mapping[str, int], seed: int) -> None:
        self.names = tuple(shares)
        edges = np.cumsum([0, *shares.values()], dtype=np.int64)
        self._edges = edges * BLOCK
        self._first_threshold = seed % WHOLE
        # Counts before chunk i, at index i.
        self._before_chunk: list[Counts] = [np.zeros(len(self.names), dtype=np.int64)]
        self._chunk: tuple[int, Counts] | None = None

    def counts(self, block: int) -> Counts:
        """Return the number of samples of each source in a block, shape `(sources,)`."""
        chunk, at = divmod(block, CHUNK)
        return self._counts_of_chunk(chunk)[at]

    def before(self, block: int) -> Counts:
        """Return the number of samples of each source in all blocks before this one, shape `(sources,)`."""
        chunk, at = divmod(block, CHUNK)
        while len(self._before_chunk) <= chunk:
            last = len(self._before_chunk) - 1
            self._before_chunk.append(self._before_chunk[last] + self._counts_of_chunk(last).sum(axis=0))
        total: Counts = self._before_chunk[chunk] + self._counts_of_chunk(chunk)[:at].sum(axis=0)
        return total

    def block_of_draw(self, source: int, draw: int) -> int:
        """Return the block that holds draw number `draw`, from 0, of a source whose share is not 0."""
        low, high = 0, 1
        while self.before(high)[source] <= draw:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.before(middle)[source] <= draw else (low, middle)
        return low

    def _counts_of_chunk(self, chunk: int) -> Counts:
        if self._chunk is None or self._chunk[0] != chunk:
            blocks = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.int64)
            thresholds = (self._first_threshold + blocks % WHOLE * GOLDEN % WHOLE) % WHOLE
            self._chunk = chunk, np.diff((self._edges[None, :] + thresholds[:, None]) >> BITS, axis=1)
        return self._chunk[1]
