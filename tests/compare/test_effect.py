"""An effect is told from a placebo's only if it is larger than all of theirs, metric by metric and window by window."""

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.compare.effect import MetricEffect, in_order, is_outcome, measure

STEP = 10
LAST = 110


def curve(shift: float = 0.0, after: int = STEP, steps: range = range(5, LAST + 1, 5)) -> dict[int, float]:
    """A loss that falls, and is shifted after a step."""
    return {step: 5.0 - step / 100 + (shift if step > after else 0.0) for step in steps}


def effect_of(shift: float, *placebos: float) -> MetricEffect:
    """The effect of a shift beside these."""
    arms = [{"loss": curve(each)} for each in (shift, 0.0, *placebos)]
    (found,) = measure(arms[0], arms[1], arms[2:], STEP)
    return found


PLACEBOS = (0.01, -0.02, 0.005, -0.015, 0.0)


def test_larger_than_every_placebo_is_distinguishable() -> None:
    found = effect_of(-0.5, *PLACEBOS)
    assert found.points == 20
    for window in ("last step", "last tenth", "area"):
        statistic = found.of(window)  # type: ignore[arg-type]
        assert statistic.distinguishable
        assert (statistic.nearer, statistic.spread) == (5, pytest.approx(0.02))
        assert statistic.effect == pytest.approx(0.5 if window == "area" else -0.5)
    late = found.of("last tenth")
    assert (late.first_step, late.last_step) == (105, 110)
    assert late.run == pytest.approx(late.without - 0.5)


@pytest.mark.parametrize(("shift", "nearer"), [(0.012, 3), (0.0199, 4), (0.0, 0)])
def test_inside_the_placebos_spread_is_not(shift: float, nearer: int) -> None:
    found = effect_of(shift, *PLACEBOS).of("last tenth")
    assert not found.distinguishable
    assert found.nearer == nearer


def test_placebos_that_move_nothing_make_the_smallest_effect_certain() -> None:
    assert effect_of(1e-9, *([0.0] * 5)).of("last step").distinguishable
    assert not effect_of(0.0, *([0.0] * 5)).of("last step").distinguishable


def test_curves_that_cross_have_an_area_though_they_end_alike() -> None:
    run = curve() | {20: 4.0, 25: 6.0}
    arms = [{"loss": each} for each in (run, curve(), *map(curve, PLACEBOS))]
    (found,) = measure(arms[0], arms[1], arms[2:], STEP)
    assert not found.of("last tenth").distinguishable
    assert found.of("area").effect == pytest.approx((0.8 + 1.25) / 20)
    assert found.of("area").distinguishable


def test_only_steps_and_metrics_that_all_arms_have_are_compared() -> None:
    seldom = dict.fromkeys((10, 60, 105), 1.0)
    run = {"loss": curve(), "eval_loss": seldom | {110: 3.0}, "own": {5: 1.0}, "lr": curve(), "gone": curve()}
    other = {"loss": curve(), "eval_loss": seldom, "own": {5: 1.0}, "lr": curve()}
    found = measure(run, other, [other] * 5, STEP)
    assert [(each.name, each.points) for each in found] == [("loss", 20), ("eval_loss", 2)]
    assert found[1].of("last tenth").first_step == 105


def test_divergence_is_an_infinite_effect_and_two_of_them_are_none() -> None:
    broken = curve() | {110: nan}
    arms = [{"loss": each} for each in (broken, curve(), *map(curve, PLACEBOS))]
    (found,) = measure(arms[0], arms[1], arms[2:], STEP)
    assert found.of("last step").effect == inf
    assert found.of("last step").distinguishable
    assert MetricEffect.model_validate_json(found.model_dump_json()).of("last step").effect == inf
    (found,) = measure({"loss": broken}, {"loss": broken}, [{"loss": broken}] * 5, STEP)
    assert found.of("last step").effect == 0


OUTCOMES = ("loss", "loss_local", "eval_loss", "eval_heldout_code_loss", "grad_norm", "update_ratio/h.0", "dormant/h.1")


@pytest.mark.parametrize("name", [*OUTCOMES, "return", "eval/test_loss", "dynamics/bad_probability"])
def test_measurements_of_the_training_are_outcomes(name: str) -> None:
    assert is_outcome(name)


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "lr/1",
        "step_s",
        "tokens_per_s",
        "memory_bytes",
        "eval_runtime",
        "eval_samples_per_second",
        "train_loss",
        "phase",
    ],
)
def test_clocks_memory_and_settings_are_not(name: str) -> None:
    assert not is_outcome(name)


def test_losses_come_first_and_single_layers_last() -> None:
    assert in_order({"update_norm/h.0", "grad_norm", "eval_loss", "loss"}) == [
        "loss",
        "eval_loss",
        "grad_norm",
        "update_norm/h.0",
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(-1, 1), st.lists(st.floats(-1, 1), min_size=5, max_size=9))
def test_rank_of_the_effect_is_that_among_the_placebos(shift: float, placebos: list[float]) -> None:
    found = effect_of(shift, *placebos).of("last step")
    distances = [abs(each) for each in found.placebos]
    assert found.nearer == sum(each < abs(found.effect) for each in distances)
    assert found.distinguishable == (abs(found.effect) > max(distances))
