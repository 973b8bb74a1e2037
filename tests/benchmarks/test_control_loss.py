"""What the control-loss benchmark reads out of a rank's diary, on diaries that are known."""

from uuid import uuid4

import pytest

from benchmarks.live.control_loss import ServerOutage, comebacks, longest_gap, not_used, speed
from benchmarks.live.latency_evidence import Page


def diary(*rates: float) -> dict[int, Page]:
    return {step: Page(step - 1.0, rate, float(step)) for step, rate in enumerate(rates, 1)}


def test_a_value_that_comes_back_counts_as_applied_twice() -> None:
    assert comebacks(diary(9, 1, 1, 2, 2, 3), {1, 2, 3}) == 0
    assert comebacks(diary(9, 1, 1, 2, 1, 3), {1, 2, 3}) == 1
    assert comebacks(diary(9, 1, 9, 1, 9), {2}) == 0


def test_a_value_counts_as_used_if_the_next_step_used_it_or_a_later_one_took_its_place() -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    rates = {first: 1.0, second: 2.0, third: 3.0}
    assert not_used(diary(9, 1, 2, 2), rates, {first: 1, second: 2}) == 0
    assert not_used(diary(9, 2, 2), rates, {first: 1, second: 1}) == 0
    assert not_used(diary(9, 1, 2), rates, {first: 1, second: 1}) == 1
    assert not_used(diary(9, 1), rates, {first: 1, third: 2}) == 0


def test_speed_counts_the_steps_that_end_within_the_spans() -> None:
    ends = [0.5, 1.5, 2.5, 3.5, 9.0]
    assert speed(ends, [(1.0, 3.0)]) == pytest.approx(1.0)
    assert speed(ends, [(0.0, 1.0), (3.0, 4.0)]) == pytest.approx(1.0)


def test_the_longest_gap_is_looked_for_around_the_losses_only() -> None:
    ends = [0.0, 5.0, 6.0, 8.0, 20.0]
    assert longest_gap(ends, [ServerOutage(6.5, 7.0)]) == pytest.approx(2.0)
