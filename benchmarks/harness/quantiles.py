"""Medians and percentiles by NumPy; NaN without values."""

import math
from collections.abc import Iterable

import numpy as np


def quantile(values: Iterable[float], share: float) -> float:
    """Return the least measured value that at least `share` (0 to 1) of the values do not exceed."""
    measured = np.fromiter(values, float)
    return float(np.quantile(measured, share, method="inverted_cdf")) if measured.size else math.nan


def median(values: Iterable[float]) -> float:
    """Return the measured value in the middle; of two, the lower one."""
    return quantile(values, 0.5)


def midpoint(values: Iterable[float]) -> float:
    """Return the usual median, for few values: of two values in the middle, their mean."""
    measured = np.fromiter(values, float)
    return float(np.median(measured)) if measured.size else math.nan
