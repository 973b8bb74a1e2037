"""Adaptive cadence: bounded, rare at a healthy run, frequent at a doubtful one."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.agent.judging.cadence import next_look, rises
from control_plane.agent.policy import AlertSeen
from tests.agent.simulated import observed

FALLING = [3.0 - i / 50 + 0.01 * (-1) ** i for i in range(60)]
WARNING, CRITICAL = AlertSeen("loss_spike", "warning", 5), AlertSeen("non_finite", "critical", 5)


@pytest.mark.parametrize(
    ("seen", "healthy", "steps"),
    [
        (observed(FALLING), 0, 40),
        (observed(FALLING), 2, 80),
        (observed(FALLING), 4, 160),
        (observed(FALLING), 40, 160),
        (observed(FALLING, alerts=(WARNING,)), 4, 20),
        (observed(FALLING, alerts=(CRITICAL,)), 4, 10),
        (observed([*FALLING, math.nan]), 4, 10),
        (observed(FALLING[::-1]), 4, 20),
        (observed(FALLING, changed_at=50), 4, 20),
        (observed(FALLING, changed_at=5), 4, 160),
    ],
)
def test_next_look_by_what_is_seen(seen: Any, healthy: int, steps: int) -> None:
    assert next_look(40, seen, healthy, 20) == steps


@given(
    every=st.integers(1, 1000),
    healthy=st.integers(0, 10**6),
    losses=st.lists(st.floats(), max_size=30),
    alerts=st.lists(st.sampled_from([WARNING, CRITICAL]), max_size=2),
    changed=st.none() | st.integers(0, 40),
)
def test_next_look_stays_within_a_quarter_and_four_times(
    every: int, healthy: int, losses: list[float], alerts: list[AlertSeen], changed: int | None
) -> None:
    seen = observed(losses, alerts=tuple(alerts), changed_at=changed)
    assert max(1, every // 4) <= next_look(every, seen, healthy, 20) <= 4 * every


def test_noise_is_no_rise() -> None:
    assert not rises([3.0 + 0.2 * math.sin(17.0 * i) for i in range(60)])
    assert rises([3.0 + 0.02 * i + 0.2 * math.sin(17.0 * i) for i in range(60)])
