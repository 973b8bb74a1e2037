"""Downsampling of series for charts: bins of a power-of-two width, aligned at zero.

The position of a bin does not depend on later points, so a growing line does not flicker and an unchanged bin is not
drawn again. Each bin keeps its smallest and its largest value, so spikes stay visible.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def bin_width(span: float, max_bins: int) -> float:
    """Return the smallest power of two, at least 1, that cuts `span` (in units of x) into at most `max_bins` bins."""
    if span <= max_bins:
        return 1.0
    return float(2 ** math.ceil(math.log2(span / max_bins)))


def extremes(x: Floats, y: Floats, width: float) -> tuple[Floats, Floats]:
    """Return the points with the smallest and the largest finite `y` of each bin, in the order of `x`.

    `x` and `y` have the same length and `x` does not decrease. Values that are not finite are dropped: they are drawn
    as marks, not as points of a line.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) == 0:
        return x, y
    bins = np.floor_divide(x, width)
    by_value = np.lexsort((y, bins))
    edges = np.flatnonzero(np.diff(bins[by_value])) + 1
    lowest = by_value[np.concatenate(([0], edges))]
    highest = by_value[np.concatenate((edges - 1, [len(by_value) - 1]))]
    kept = np.unique(np.concatenate((lowest, highest)))
    return x[kept], y[kept]


def last_of_bins(x: Floats, y: Floats, width: float) -> tuple[Floats, Floats]:
    """Return the last point of each bin, for a line that is smooth already. `x` does not decrease."""
    if len(x) == 0:
        return x, y
    bins = np.floor_divide(x, width)
    kept = np.concatenate((np.flatnonzero(np.diff(bins)), [len(x) - 1]))
    return x[kept], y[kept]
