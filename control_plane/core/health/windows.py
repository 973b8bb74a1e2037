"""Windows over signs: robust level and noise of the last values, and block means over a whole run in bounded memory."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from math import dist, sqrt
from typing import Any

QUARTILES_TO_DEVIATION = 1.349
"""Ratio of a normal distribution's interquartile range to its standard deviation."""


def median(values: Sequence[float]) -> float:
    """Return the median; of an even number of values, the mean of the two in the middle."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def median_without(ordered: Sequence[float], value: float) -> float:
    """Return the median of sorted values but for one that equals `value`, which is among them; at least two values."""
    gone, half = bisect_left(ordered, value), (len(ordered) - 1) // 2
    upper = ordered[half] if half < gone else ordered[half + 1]
    if (len(ordered) - 1) % 2:
        return upper
    lower = ordered[half - 1] if half - 1 < gone else ordered[half]
    return (lower + upper) / 2


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for fewer than two values."""
    count = len(values)
    return dist(values, [sum(values) / count] * count) / sqrt(count - 1) if count > 1 else 0.0


def level_and_noise(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the noise: the larger one of standard deviation and scaled interquartile range.

    The first is not fooled by many equal values, the second not by two levels in one window.
    """
    ordered, count = sorted(values), len(values)
    quartiles = ordered[(3 * count) // 4] - ordered[count // 4]
    half = count // 2
    middle = ordered[half] if count % 2 else (ordered[half - 1] + ordered[half]) / 2
    return middle, max(deviation(values), quartiles / QUARTILES_TO_DEVIATION)


def noise_between(values: Sequence[float]) -> float:
    """Return the standard deviation estimated from differences of neighbours: a slow trend adds nothing to it."""
    if len(values) < 2:
        return 0.0
    squares = [(after - before) ** 2 for before, after in pairwise(values)]
    return sqrt(sum(squares) / (2 * len(squares)))


class Window:
    """Last `size` finite values of a sign.

    Statistics are computed from the values themselves, never kept as running sums: a restored window gives, bit for
    bit, what an undisturbed one gives.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[float] = []

    def __len__(self) -> int:
        return len(self.values)

    def push(self, value: float) -> None:
        """Add a value, and drop the oldest one of a full window."""
        self.values.append(value)
        if len(self.values) > self.size:
            del self.values[0]

    def state(self) -> list[float]:
        """Return the values, oldest first."""
        return list(self.values)

    def restore(self, values: Sequence[float]) -> None:
        """Take over saved values; of more than fit, the newest."""
        self.values = [float(value) for value in values][-self.size :]


class BlockMeans:
    """Means of equal blocks of values over a whole run, in bounded memory.

    When there are `most` blocks, neighbours are merged and blocks become twice as long: the run is always covered by
    `most / 2` to `most` blocks. Of several signs at once, given as rows.
    """

    def __init__(self, block: int, most: int, width: int = 1) -> None:
        self.first_block, self.block, self.most, self.width = block, block, most, width
        self.blocks: list[list[float]] = []
        self.sums, self.count = [0.0] * width, 0

    def push(self, row: Sequence[float]) -> bool:
        """Add the values of one step. Return whether they have completed a block."""
        self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
        self.count += 1
        if self.count < self.block:
            return False
        self.blocks.append([total / self.count for total in self.sums])
        self.sums, self.count = [0.0] * self.width, 0
        if len(self.blocks) == self.most:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
            self.blocks = [[(a + b) / 2 for a, b in zip(one, two, strict=True)] for one, two in pairs]
            self.block *= 2
        return True

    def state(self) -> dict[str, Any]:
        """Return blocks and the block in progress as JSON."""
        return {"block": self.block, "blocks": [list(row) for row in self.blocks], "sums": self.sums, "n": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.block, self.count = int(state["block"]), int(state["n"])
        self.blocks = [[float(value) for value in row] for row in state["blocks"]]
        self.sums = [float(value) for value in state["sums"]]
