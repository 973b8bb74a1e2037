"""Wilcoxon's signed-rank test of paired differences, exact: over all assignments of signs, with ties and zeros.

Differences of 0 are dropped, equal ones share the mean of their ranks. The p value is two-sided: the share of all sign
assignments whose smaller rank sum is not above the measured one.
"""

import math
from collections import Counter
from collections.abc import Sequence


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the exact two-sided p value; 1 without a difference. Raises `ValueError` if one is not finite."""
    if not all(map(math.isfinite, differences)):
        raise ValueError("the test takes finite differences")
    ranks = _doubled_ranks([abs(difference) for difference in differences if difference])
    signed = [difference for difference in differences if difference]
    if not ranks:
        return 1.0
    above = sum(rank for rank, difference in zip(ranks, signed, strict=True) if difference > 0)
    smaller = min(above, sum(ranks) - above)
    counts = _distribution(ranks)
    as_small = sum(count for total, count in counts.items() if min(total, sum(ranks) - total) <= smaller)
    return as_small / 2 ** len(ranks)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each value, the mean rank among equals: so that all are whole numbers."""
    return [
        2 * sum(other < value for other in values) + sum(other == value for other in values) + 1 for value in values
    ]


def _distribution(ranks: Sequence[int]) -> Counter[int]:
    """Return how many assignments of signs give each sum of the positive ranks."""
    counts = Counter({0: 1})
    for rank in ranks:
        raised = Counter({total + rank: count for total, count in counts.items()})
        counts += raised
    return counts
