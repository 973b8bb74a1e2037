"""Measured effect of a change: the loss after it, beside what the trend before it would have led to.

A line is fitted to the losses before the change (least squares) and extended over the losses after it. The difference
between their mean and the line's is judged by its standard error, from the scatter around the line before and around
the mean after. It is an estimate, not a proof: losses of neighbouring steps are not independent, and a loss that falls
ever more slowly lies above its own trend. So only three standard errors count, and where training and evaluation
disagree the effect is unclear. What a change has caused exactly, a replay without it tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Series = Sequence[tuple[int, float]]
Judgement = Literal["better", "worse", "unclear"]

LEAST_POINTS = 4
CLEAR = 3.0
"""Standard errors from which on a difference counts."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect of one change on one series: the means before and after, None if not finite, and the judgement."""

    before: float | None
    after: float | None
    judgement: Judgement


def effect_of(losses: Series, evals: Series, step: int, before_steps: int, until: int) -> Effect | None:
    """Return the effect on the losses of a change at the boundary after `step`, or None if too little was measured.

    Args:
        losses: (step, loss), oldest first, of the current branch.
        evals: the same of the evaluations; they only contradict.
        step: the last step before the change.
        before_steps: steps of the trend before it.
        until: the last step after it that counts.
    """
    before = [(at, loss) for at, loss in losses if step - before_steps < at <= step]
    after = [(at, loss) for at, loss in losses if step < at <= until]
    if len(before) < LEAST_POINTS or len(after) < LEAST_POINTS:
        return None
    effect = _judge(before, after)
    held_out = _direction_of_evals(evals, step, before_steps, until)
    if {effect.judgement, held_out} == {"better", "worse"}:
        return Effect(effect.before, effect.after, "unclear")
    return effect


def _judge(before: Series, after: Series) -> Effect:
    broken_before, broken_after = _broken(before), _broken(after)
    mean_before = None if broken_before else fmean(loss for _, loss in before)
    mean_after = None if broken_after else fmean(loss for _, loss in after)
    if mean_before is None or mean_after is None:
        if broken_before == broken_after:
            return Effect(mean_before, mean_after, "unclear")
        return Effect(mean_before, mean_after, "worse" if broken_after else "better")
    expected, error = _extended(before, after)
    noise = math.hypot(error, _scatter([loss for _, loss in after]) / math.sqrt(len(after)))
    difference = mean_after - expected
    if not math.isfinite(difference) or abs(difference) <= CLEAR * noise + 1e-12 * abs(expected):
        return Effect(mean_before, mean_after, "unclear")
    return Effect(mean_before, mean_after, "better" if difference < 0 else "worse")


def _broken(series: Series) -> bool:
    return not all(math.isfinite(value) and abs(value) < 1e100 for _, value in series)


def _extended(before: Series, after: Series) -> tuple[float, float]:
    """Return the mean that the trend before leads to over the steps after, and its standard error."""
    steps, losses = [float(at) for at, _ in before], [loss for _, loss in before]
    middle, mean = fmean(steps), fmean(losses)
    spread = sum((at - middle) ** 2 for at in steps)
    slope = sum((at - middle) * (loss - mean) for at, loss in before) / spread if spread else 0.0
    reach = fmean(float(at) for at, _ in after) - middle
    residuals = [loss - mean - slope * (at - middle) for at, loss in before]
    sigma = math.sqrt(sum(each**2 for each in residuals) / max(1, len(residuals) - 2))
    error = sigma * math.sqrt(1 / len(before) + (reach**2 / spread if spread else 0.0))
    return mean + slope * reach, error


def _scatter(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


def _direction_of_evals(evals: Series, step: int, before_steps: int, until: int) -> str:
    """Return `better` or `worse` by the last evaluation before and the last one after; `none` without both."""
    before = [value for at, value in evals if step - 4 * before_steps < at <= step]
    after = [value for at, value in evals if step < at <= until]
    if not before or not after or before[-1] == after[-1]:
        return "none"
    if not math.isfinite(after[-1]):
        return "worse"
    return "better" if not math.isfinite(before[-1]) or after[-1] < before[-1] else "worse"
