"""Bins keep every spike and stay where they are while a line grows."""

import numpy as np
import pytest

from ui.charts.bins import bin_width, extremes, last_of_bins


@pytest.mark.parametrize(("span", "width"), [(0, 1), (600, 1), (601, 2), (50_000, 128)])
def test_bin_width_is_a_power_of_two(span: float, width: float) -> None:
    assert bin_width(span, 600) == width


def test_extremes_of_a_long_line_keep_the_spikes() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[4321], y[7777] = 99.0, -99.0
    kept_x, kept_y = extremes(x, y, 64)
    assert len(kept_x) < 400
    assert kept_y[kept_x == 4321].tolist() == [99.0]
    assert kept_y[kept_x == 7777].tolist() == [-99.0]


def test_extremes_after_an_append_only_change_the_last_bin() -> None:
    y = np.random.default_rng(3).normal(size=5000)
    before = extremes(np.arange(4990.0), y[:4990], 16)[0].tolist()
    after = extremes(np.arange(5000.0), y, 16)[0].tolist()
    assert [x for x in before if x < 4976] == [x for x in after if x < 4976]


def test_extremes_of_values_that_are_not_finite_leaves_them_out() -> None:
    x, y = extremes(np.arange(4.0), np.array([1.0, np.nan, np.inf, 2.0]), 1)
    assert (x.tolist(), y.tolist()) == ([0.0, 3.0], [1.0, 2.0])


def test_extremes_of_nothing_is_nothing() -> None:
    x, _ = extremes(np.array([]), np.array([]), 1)
    assert len(x) == 0


def test_last_of_bins_keeps_the_newest_point() -> None:
    x, _ = last_of_bins(np.arange(10.0), np.arange(10.0), 4)
    assert x.tolist() == [3.0, 7.0, 9.0]
