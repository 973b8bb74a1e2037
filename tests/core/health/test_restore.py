"""A monitor that was saved and restored, anywhere in a window, says what an undisturbed one says."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.health.detectors import DETECTORS
from control_plane.core.health.detectors.spikes import GradientSpike, LossSpike, is_within
from control_plane.core.health.findings import Condition
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings, SpikeSettings
from control_plane.core.health.windows import BlockMeans
from control_plane.core.model.health import Alert, AlertKind, Cleared
from tests.core.health.series import FAULTS, HOOK_STEPS, RANKS, Healthy, Signs, with_fault

SETTINGS = HealthSettings(hook_steps=HOOK_STEPS)
ONSET, LENGTH = 200, 260

# Small windows, so that a short series of arbitrary values fills them, begins alerts and ends them.
SMALL = HealthSettings.model_validate(
    {
        "loss_spike": {"window_steps": 12, "least_steps": 8, "sigmas": 1.0, "log_sigmas": 1.0, "clear_steps": 2},
        "gradient_spike": {"window_steps": 12, "least_steps": 8, "log_sigmas": 1.0, "factor": 1.1, "clear_steps": 2},
        "divergence": {"window_steps": 8, "rise": 0.01, "sigmas": 0.5},
        "plateau": {"window_steps": 10, "least_improvement": 0.5},
        "forgetting": {"least_evaluations": 1, "rise": 0.01, "sigmas": 0.5},
        "dead_units": {"share": 0.2, "blow": 0.01, "collapse": 0.5},
        "layers": {"least_samples": 2, "window_samples": 8, "vanish": 0.5, "explode": 1.5, "update_ratio": 0.01},
        "attention": {"least_samples": 2, "window_samples": 8, "sigmas": 0.5, "entropy_fall": 0.05},
        "stall": {"factor": 1.5, "least_s": 0.1},
        "starvation": {"window_steps": 8, "share": 0.1},
        "memory": {"share": 0.5, "steps": 2},
        "checkpoints": {"most_steps": 3},
        "non_finite": {"clear_steps": 2},
        "precision": {"consecutive": 2, "clear_steps": 2},
    }
)
NAMES = (
    *("loss", "loss_local", "grad_norm", "lr", "max_grad_norm", "skipped_steps", "loss_scale", "loss_scale_min"),
    *("step_s", "data_wait_s", "phase", "phase_s", "memory_bytes", "memory_limit_bytes", "checkpoint_age_steps"),
    *("checkpoint_interval_steps", "eval/test_loss", "heldout/old_loss", "weight_norm/a", "layer_grad_norm/a"),
    *("layer_grad_norm/b", "update_ratio/a", "hidden_std/a", "dormant/a", "attention_entropy/a"),
    *("attention_logit_max/a", "qk_entropy/a"),
)
VALUES = st.one_of(
    st.floats(0, 4), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e-9, 1e308, -1e308, 150.0, -2.0])
)


def outcome(monitor: HealthMonitor, now: Signs) -> list[str]:
    """Return what one step has changed and the verdict, as text: NaN is not equal to itself."""
    change = monitor.observe(now.step, now.signs, now.by_rank)
    return [change.model_dump_json(), json.dumps(monitor.trust())]


def restored(monitor: HealthMonitor, settings: HealthSettings) -> HealthMonitor:
    """Return another monitor with the state of this one, by way of the bytes of a checkpoint."""
    other = HealthMonitor(settings)
    other.restore(json.loads(json.dumps(monitor.state(), allow_nan=False)))
    return other


@pytest.mark.parametrize("kind", FAULTS)
def test_restored_anywhere_in_a_fault_it_goes_on_as_if_undisturbed(kind: AlertKind) -> None:
    series = list(with_fault(Healthy(3, steps=LENGTH, schedule="constant"), kind, ONSET))
    undisturbed = HealthMonitor(SETTINGS)
    expected, saved = [], []
    for now in series:
        saved.append(json.dumps(undisturbed.state(), allow_nan=False))
        expected.append(outcome(undisturbed, now))
    for start in (1, 100, ONSET - 1, ONSET, ONSET + 1, ONSET + 7, ONSET + 33):
        other = HealthMonitor(SETTINGS)
        other.restore(json.loads(saved[start]))
        assert [outcome(other, now) for now in series[start:]] == expected[start:], f"restored before step {start + 1}"


@st.composite
def any_series(draw: st.DrawFn) -> list[Signs]:
    """Signs of a few steps, any of them missing or absurd."""
    series = []
    for step in range(1, draw(st.integers(10, 45))):
        signs = draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12))
        times = draw(st.lists(VALUES, min_size=0, max_size=RANKS))
        by_rank = {"own_step_s": times, "memory_bytes": times, "memory_limit_bytes": [1.0] * len(times)}
        series.append(Signs(step, signs, by_rank if times else {}))
    return series


@settings(max_examples=60, deadline=None)
@given(any_series(), st.data())
def test_whatever_the_signs_a_restore_changes_nothing_and_alerts_begin_and_end_in_turn(
    series: list[Signs], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(series) - 1))
    one, two = HealthMonitor(SMALL), HealthMonitor(SMALL)
    open_alerts: set[tuple[str, str, int]] = set()
    for number, now in enumerate(series):
        if number == at:
            two = restored(two, SMALL)
        change = one.observe(now.step, now.signs, now.by_rank)
        assert outcome(two, now)[0] == change.model_dump_json()
        for cleared in change.cleared:
            open_alerts.remove((cleared.kind, cleared.subject, cleared.onset_step))
        for alert in change.raised:
            key = (alert.kind, alert.subject, alert.onset_step)
            assert not any(key[:2] == other[:2] for other in open_alerts), "raised twice"
            assert alert.onset_step <= alert.step == now.step
            open_alerts.add(key)


@settings(max_examples=60, deadline=None)
@given(any_series(), st.integers(0, 2**32))
def test_looks_that_are_put_off_give_the_same_alerts_of_the_same_steps(series: list[Signs], seed: int) -> None:
    dice = random.Random(seed)
    one, two = HealthMonitor(SMALL), HealthMonitor(SMALL)
    at_once: list[Alert | Cleared] = []
    later: list[Alert | Cleared] = []
    for now in series:
        changes = [two.observe(now.step, now.signs, now.by_rank, put_off=dice.random() < 0.7)]
        if dice.random() < 0.1:
            changes.append(two.catch_up())
            two = restored(two, SMALL)
        later += [told for change in changes for told in (*change.raised, *change.cleared)]
        change = one.observe(now.step, now.signs, now.by_rank)
        at_once += [*change.raised, *change.cleared]
    change = two.catch_up()
    later += [*change.raised, *change.cleared]
    assert sorted(each.model_dump_json() for each in later) == sorted(each.model_dump_json() for each in at_once)
    assert json.dumps(two.state(), sort_keys=True) == json.dumps(one.state(), sort_keys=True)
    assert two.trust() == one.trust()


@given(
    st.lists(st.floats(-50, 50), min_size=8, max_size=128),
    st.floats(-60, 60),
    st.floats(0.5, 8),
    st.sampled_from([LossSpike, GradientSpike]),
)
def test_what_is_within_for_sure_is_no_outlier(
    past: list[float], value: float, sigmas: float, kind: type[LossSpike] | type[GradientSpike]
) -> None:
    detector = kind(SpikeSettings(sigmas=sigmas, log_sigmas=sigmas))
    if is_within(value, past, detector.sigmas):
        assert detector.from_window(value) <= detector.bounds(past)[0] * (1 + 1e-9) + 1e-9


def test_every_detector_keeps_its_whole_state() -> None:
    """A detector with an attribute that its state lacks would pass by luck: compare the attributes themselves."""
    series = list(with_fault(Healthy(5, steps=LENGTH), "exploding_layer", ONSET))
    for make in DETECTORS:
        one, two = make(SETTINGS), make(SETTINGS)
        monitor = HealthMonitor(SETTINGS)
        monitor._detectors = [one]
        for now in series:
            monitor.observe(now.step, now.signs, now.by_rank)
        two.restore(json.loads(json.dumps(one.state())))
        assert json.dumps(two.state()) == json.dumps(one.state())
        assert flat(two) == flat(one), one.name


def flat(value: object) -> object:
    """Return all attributes of an object and of what it holds."""
    if isinstance(value, dict):
        return {key: flat(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [flat(one) for one in value]
    return {key: flat(one) for key, one in vars(value).items()} if hasattr(value, "__dict__") else value


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))
def test_condition_is_that_of_a_second_implementation(bad: list[bool], confirm: int, more: int, release: int) -> None:
    """Count over the whole history, instead of step by step."""
    condition, history, is_open = Condition(confirm, confirm + more, release), [], False
    for step, is_bad in enumerate(bad):
        history.append(is_bad)
        change = condition.note(step, is_bad)
        recent = history[-(confirm + more) :]
        if not is_open and is_bad and sum(recent) >= confirm:
            is_open, history = True, []
            assert change == "began"
            assert condition.onset == step - len(recent) + 1 + recent.index(True)
        elif is_open and len(history) >= release and not any(history[-release:]):
            is_open, history = False, []
            assert change == "ended"
        else:
            assert change is None


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=300))
def test_block_means_cover_everything_in_bounded_memory(values: list[float]) -> None:
    series = BlockMeans(block=3, most=8)
    for value in values:
        series.push((value,))
    assert len(series.blocks) < 8
    covered = len(series.blocks) * series.block
    assert covered + series.count == len(values)
    for number, (block,) in enumerate(series.blocks):
        own = values[number * series.block : (number + 1) * series.block]
        assert block == pytest.approx(sum(own) / len(own), abs=1e-9)
