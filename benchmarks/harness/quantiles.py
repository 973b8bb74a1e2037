"""Medians and percentiles by nearest rank: every answer is a value that was measured."""

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of the values do not exceed; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def median(values: Iterable[float]) -> float:
    """The value in the middle; of two, the lower one. NaN if there are none."""
    return quantile(values, 0.5)


def midpoint(values: Iterable[float]) -> float:
    """The usual median: of two values in the middle, their mean. For few values. NaN if there are none."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return math.nan
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
