"""Medians and percentiles, against their definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.quantiles import median, midpoint, quantile

VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@given(VALUES, st.floats(min_value=0.001, max_value=1))
def test_quantile_is_the_least_value_that_covers_the_share(values: list[float], share: float) -> None:
    found = quantile(values, share)
    needed = share * len(values)
    assert found in values
    assert sum(value <= found for value in values) >= needed - 1e-9
    assert sum(value < found for value in values) < needed


@pytest.mark.parametrize(("values", "lower", "middle"), [([3, 1, 2], 2, 2), ([4, 1, 2, 3], 2, 2.5), ([7], 7, 7)])
def test_medians_of_few_values_are_as_expected(values: list[float], lower: float, middle: float) -> None:
    assert (median(values), midpoint(values)) == (lower, middle)


def test_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(quantile([], 0.99))
    assert math.isnan(median([]))
    assert math.isnan(midpoint([]))
