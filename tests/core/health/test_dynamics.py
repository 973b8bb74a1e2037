"""Model of training dynamics: its filter is exact, healthy trainings are not bad, a bad state is charted and told."""

import itertools
import math

import pytest
from pydantic import ValidationError

from control_plane.core.health.dynamics import BUILT_IN, densities, forward
from control_plane.core.health.latency import LATEST
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import DynamicsModel, HealthSettings
from tests.core.health.series import Healthy

LOUD = HealthSettings(silent=frozenset())
ONSET = 401
ROWS = [(-2.0, 0.0, 0.1), (0.0, 0.1, 0.0), (5.0, 1.5, 1.0), (4.0, 1.0, 1.2)]


def test_filter_is_that_of_a_sum_over_all_paths() -> None:
    """Compare with the definition: add up the probability of every path of states."""
    states = range(len(BUILT_IN.states))
    probabilities = None
    for count in range(1, len(ROWS) + 1):
        probabilities = forward(BUILT_IN, probabilities, ROWS[count - 1])
        by_last = [0.0 for _ in states]
        for path in itertools.product(states, repeat=count):
            chance = BUILT_IN.start[path[0]]
            for one, two in itertools.pairwise(path):
                chance *= BUILT_IN.transition[one][two]
            for state, row in zip(path, ROWS, strict=False):
                chance *= densities(BUILT_IN, row)[state]
            by_last[path[-1]] += chance
        assert probabilities == pytest.approx([value / sum(by_last) for value in by_last])


def test_healthy_trainings_are_in_no_bad_state() -> None:
    for seed, schedule in enumerate(("constant", "cosine", "linear")):
        monitor = HealthMonitor(LOUD)
        worst = 0.0
        for now in Healthy(seed, 700, schedule=schedule):
            change = monitor.observe(now.step, now.signs, now.by_rank)
            assert change.raised == ()
            worst = max(worst, monitor.derived().get("dynamics/bad_probability", 0.0))
        assert worst < 0.9


@pytest.mark.parametrize("silent", [False, True])
def test_growing_noise_and_gradients_are_bad_and_told_only_if_asked(silent: bool) -> None:
    monitor = HealthMonitor(HealthSettings() if silent else LOUD)
    alerts = []
    for now in Healthy(5, ONSET + LATEST["bad_dynamics"].count, schedule="constant"):
        if now.step >= ONSET:
            after = now.step - ONSET
            now.signs["loss_local"] *= 1 + 0.004 * after * (1 + 0.5 * math.sin(after))
            now.signs["grad_norm"] *= 1 + 0.05 * after
        alerts += [alert for alert in monitor.observe(now.step, now.signs).raised if alert.kind == "bad_dynamics"]
    assert monitor.derived()["dynamics/bad_probability"] > 0.95
    assert monitor.derived()["dynamics/state"] == BUILT_IN.bad[0]
    if silent:
        assert alerts == []
    else:
        (alert,) = alerts
        assert (alert.level, alert.suggestion) == ("info", "save")
        assert ONSET - BUILT_IN.block_steps <= alert.onset_step <= alert.step <= ONSET + LATEST["bad_dynamics"].count


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start": [0.5, 0.5]}, "start does not fit 4 states"),
        ({"means": [[0.0]] * 4}, "means does not fit 4 states and 3 features"),
        ({"bad": [4]}, "bad does not fit"),
        ({"start": [0.5, 0.5, 0.5, 0.5]}, "add up to 1"),
        ({"deviations": [[0.0] * 3] * 4}, "above 0"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DynamicsModel.model_validate(BUILT_IN.model_dump() | change)


def test_a_model_of_ones_own_goes_through_the_config() -> None:
    own = HealthSettings.model_validate({"dynamics": {"model": BUILT_IN.model_dump() | {"block_steps": 5}}})
    monitor = HealthMonitor(own)
    for now in Healthy(1, 40):
        monitor.observe(now.step, now.signs)
    assert monitor.derived()["dynamics/bad_probability"] < 0.9, "after 40 steps it has seen blocks of 5, not of 10"
