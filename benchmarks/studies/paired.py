"""Paired differences of two arms with an interval, as the studies of data report them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.harness.paired_bootstrap import t_quantile


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with Student's 95 % interval; infinite of fewer than two pairs."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"

    def figures(self, name: str) -> dict[str, float]:
        """Return the difference and its interval as figures of a result."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Return by how much the values of `one` lie above those of `other`, in one order."""
    pairs = [this - that for this, that in zip(one, other, strict=True)]
    middle = fmean(pairs)
    if len(pairs) < 2:
        return Difference(middle, -math.inf, math.inf)
    half = t_quantile(0.975, len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
    return Difference(middle, middle - half, middle + half)
