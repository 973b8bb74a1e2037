"""Wilcoxon's signed-rank test against published critical values and a count over all signs."""

import itertools
import math
import random

import pytest

from benchmarks.studies.wilcoxon import wilcoxon


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 2 / 256),
        ([-1, 2, 3, 4, 5, 6, 7, 8], 4 / 256),
        ([-1, -2, -3, 4, 5, 6, 7, 8], 28 / 256),
        ([-1, -2, 3, 4, 5, 6, 7, 8], 10 / 256),  # rank sum 3: 0.0391 in every table for n = 8
        ([1, 2, 3, 4, 5], 2 / 32),
        ([1], 1.0),
        ([], 1.0),
        ([0, 0, 0], 1.0),
        ([0, 1, 2, 3, 4, 5], 2 / 32),
        ([1, -1], 1.0),
        ([0.5, -1.5, 2.5, 3.5, 4.5, -5.5, 6.5, 7.5, 8.5, 9.5], 50 / 1024),  # rank sum 8
    ],
)
def test_known_p_values(differences: list[float], p: float) -> None:
    assert wilcoxon(differences) == pytest.approx(p)
    assert wilcoxon([-each for each in differences]) == pytest.approx(p)


@pytest.mark.parametrize("seed", range(20))
def test_p_value_is_the_share_of_all_signs_also_with_ties(seed: int) -> None:
    chance = random.Random(seed)
    differences = [chance.choice([-3, -2, -1, 1, 2, 3]) for _ in range(chance.randrange(2, 9))]
    sizes = [abs(each) for each in differences]
    ranks = [sum(other < size for other in sizes) + (sum(other == size for other in sizes) + 1) / 2 for size in sizes]

    def smaller(signs: tuple[int, ...]) -> float:
        above = sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign > 0)
        return min(above, sum(ranks) - above)

    measured = smaller(tuple(1 if each > 0 else -1 for each in differences))
    every = list(itertools.product([-1, 1], repeat=len(differences)))
    assert wilcoxon(differences) == pytest.approx(sum(smaller(signs) <= measured for signs in every) / len(every))


def test_a_difference_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite"):
        wilcoxon([1.0, math.nan])
