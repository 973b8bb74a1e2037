"""Effects of changes, on series whose effect is known."""

import math
import random

import pytest

from control_plane.agent.judging.effects import effect_of

STEP, STEPS = 50, 20


def series(before: float, slope: float, jump: float, noise: float, seed: int = 0) -> list[tuple[int, float]]:
    """A line with noise, that jumps at `STEP`."""
    drawn = random.Random(seed)
    return [
        (at, before + slope * at + (jump if at > STEP else 0.0) + drawn.gauss(0, noise)) for at in range(1, STEP + 21)
    ]


@pytest.mark.parametrize(
    ("slope", "jump", "judgement"),
    [(0.0, -0.5, "better"), (0.0, 0.5, "worse"), (0.0, 0.0, "unclear"), (-0.02, 0.0, "unclear"), (-0.02, 0.5, "worse")],
)
def test_effect_is_judged_against_the_trend_and_its_noise(slope: float, jump: float, judgement: str) -> None:
    found = effect_of(series(3.0, slope, jump, 0.05), [], STEP, STEPS, STEP + STEPS)
    assert found is not None
    assert found.judgement == judgement


def test_of_runs_without_an_effect_hardly_one_is_judged() -> None:
    judged = [effect_of(series(3.0, -0.01, 0.0, 0.1, seed), [], STEP, STEPS, STEP + STEPS) for seed in range(300)]
    wrong = sum(each is not None and each.judgement != "unclear" for each in judged)
    assert wrong <= 9, "three standard errors: 0.3 % of normal ones, more with twenty points"


def test_a_loss_that_is_not_finite() -> None:
    good, bad = [(at, 3.0 + 0.01 * (at % 3)) for at in range(31, 51)], [(at, math.nan) for at in range(51, 71)]
    assert effect_of([*good, *bad], [], STEP, STEPS, 70).judgement == "worse"  # type: ignore[union-attr]
    recovered = [(at, math.inf if at <= STEP else 3.0) for at in range(31, 71)]
    found = effect_of(recovered, [], STEP, STEPS, 70)
    assert (found.before, found.after, found.judgement) == (None, 3.0, "better")  # type: ignore[union-attr]
    lost = [(at, math.nan) for at in range(31, 71)]
    assert effect_of(lost, [], STEP, STEPS, 70).judgement == "unclear"  # type: ignore[union-attr]


def test_evaluation_that_contradicts_makes_it_unclear() -> None:
    losses = series(3.0, 0.0, -0.5, 0.05)
    for evals, judgement in (([(45, 3.0), (65, 3.4)], "unclear"), ([(45, 3.0), (65, 2.6)], "better")):
        assert effect_of(losses, evals, STEP, STEPS, STEP + STEPS).judgement == judgement  # type: ignore[union-attr]


def test_too_few_points_are_no_effect() -> None:
    assert effect_of(series(3.0, 0.0, 1.0, 0.1), [], STEP, STEPS, STEP + 3) is None
    assert effect_of([], [], STEP, STEPS, STEP + STEPS) is None


def test_constant_losses_are_unclear_and_huge_ones_harmless() -> None:
    assert effect_of([(at, 2.0) for at in range(31, 71)], [], STEP, STEPS, 70).judgement == "unclear"  # type: ignore[union-attr]
    huge = [(at, 1e99 if at > STEP else -1e99) for at in range(31, 71)]
    assert effect_of(huge, [], STEP, STEPS, 70).judgement == "worse"  # type: ignore[union-attr]
