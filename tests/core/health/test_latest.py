"""The table of latest times: each kind of fault is found in time, named, and nothing is said before it."""

from typing import get_args

import pytest

from control_plane.core.health.latency import LATEST, latest_steps
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.health import Alert, AlertKind, Level
from tests.core.health.series import (
    EVALUATION_STEPS,
    FAULTS,
    GATHER_STEPS,
    HOOK_STEPS,
    Healthy,
    Signs,
    with_fault,
)

SETTINGS = HealthSettings(hook_steps=HOOK_STEPS)
LEVELS: dict[AlertKind, Level] = {
    "non_finite": "critical",
    "gradient_overflow": "info",
    "loss_scale_exhausted": "critical",
    "plateau": "info",
    "bad_dynamics": "info",
}
SEEDS = range(3)
ONSET = 401  # the first step of a gather, a hook and an evaluation is at most one interval away


def alerts_of(series: list[Signs], settings: HealthSettings = SETTINGS) -> list[Alert]:
    """Return all alerts that a series raises."""
    monitor = HealthMonitor(settings)
    return [alert for now in series for alert in monitor.observe(now.step, now.signs, now.by_rank).raised]


def bound(kind: AlertKind, onset: int = ONSET) -> int:
    """Return the bound in steps."""
    return latest_steps(kind, SETTINGS, onset=onset, gather_steps=GATHER_STEPS, evaluation_steps=EVALUATION_STEPS)


def test_every_kind_has_a_bound_and_a_planted_fault() -> None:
    assert set(LATEST) == set(get_args(AlertKind))
    assert set(FAULTS) == set(LATEST) - {"bad_dynamics"}, "the model of dynamics has a test of its own"


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_fault_is_found_in_time(kind: AlertKind) -> None:
    for seed in SEEDS:
        healthy = Healthy(seed, steps=ONSET + bound(kind), schedule="constant" if kind == "plateau" else "cosine")
        alerts = alerts_of(list(with_fault(healthy, kind, ONSET)))
        before = [alert for alert in alerts if alert.step < ONSET]
        found = [alert for alert in alerts if alert.kind == kind]
        assert before == []
        assert found, f"{kind} was not found within {bound(kind)} steps, seed {seed}"
        assert found[0].step - ONSET <= bound(kind)
        assert found[0].onset_step <= found[0].step
        assert found[0].level == LEVELS.get(kind, "warning")
        assert found[0].evidence
        assert found[0].sentence[-1] == "."


def test_table_in_steps() -> None:
    """The figures that the documents quote, at a log interval of 5 steps."""
    assert bound("non_finite") == 1
    assert bound("loss_spike") == bound("gradient_spike") == 2
    assert bound("straggling_rank") == 10
    assert bound("slow_divergence") == 2 * SETTINGS.divergence.window_steps
    assert str(LATEST["plateau"]) == "2 windows"
    assert bound("plateau", onset=100) == 440
    assert bound("plateau", onset=3000) == 2040, "windows grow with the run"


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1, 0.25])
def test_healthy_training_raises_nothing(schedule: str, noise: float) -> None:
    for seed, tail in enumerate((5.0, 30.0, 5.0)):
        assert alerts_of(list(Healthy(seed, 640, noise, tail, schedule))) == []


def test_healthy_fp16_training_tells_of_skipped_steps_only() -> None:
    kinds = {alert.kind for seed in SEEDS for alert in alerts_of(list(Healthy(seed, 700, fp16=True)))}
    assert kinds == {"gradient_overflow"}


def test_a_flat_loss_while_the_rate_warms_up_restarts_or_decays_is_no_plateau() -> None:
    """The same flat loss, under five rates: where the schedule explains it, nobody is told."""
    rates = {
        "constant": lambda step: 1e-3,
        "set to zero": lambda step: 0.0 if step > 400 else 1e-3,
        "warm-up": lambda step: 1e-6 * step,
        "restart": lambda step: 1e-3 * (1 - step % 300 / 300),
        "decayed": lambda step: 1e-3 * 0.99**step,
    }
    told = {}
    for name, rate in rates.items():
        series = [Signs(now.step, now.signs | {"lr": rate(now.step)}) for now in Healthy(1, 900, noise=0.01)]
        for now in series:
            now.signs["loss_local"] = 2.0 + 0.01 * (now.step % 5)
            now.signs.pop("loss", None)
        told[name] = {alert.kind for alert in alerts_of(series)} == {"plateau"}
    assert told == {"constant": True, "set to zero": True, "warm-up": False, "restart": False, "decayed": False}


def test_explosion_that_is_barely_one_is_confirmed_by_the_next_sample_as_large() -> None:
    monitor = HealthMonitor(SETTINGS)
    raised: list[Alert] = []
    for step in range(10, 310, 10):
        norm = 1.0 if step < 200 else 1.2 * SETTINGS.layers.explode
        raised += monitor.observe(step, {"loss": 3.0, "layer_grad_norm/h.0": norm}).raised
    assert [(alert.kind, alert.subject, alert.onset_step, alert.step) for alert in raised] == [
        ("exploding_layer", "h.0", 200, 210)
    ]
