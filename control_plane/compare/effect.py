"""Effect of one command: a run, its replay without the command, and placebo replays, metric by metric.

    effects = measure(run, without, placebos, step)      each: the points of the steps after `step`, by metric

The effect is the run minus its replay without the command. Training is chaotic: a change of a millionth grows. Placebos
show how far it carries, and an effect that is not larger than the largest of theirs cannot be told from one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import Literal

from pydantic import Field

from control_plane.compare.replay_check import ReplayVerdict
from control_plane.core.health.signs import SIGNS, SignGroup
from control_plane.core.model.intent_base import LEARNING_RATE, Message
from control_plane.core.model.values import LeftOut
from control_plane.core.rules.effect.plan import Rewritten

MIN_PLACEBOS = 5
LATE_SHARE = 0.1
"""Share of the steps after the command whose mean is compared: at the end, and less noisy than one step."""

OUTCOMES: frozenset[SignGroup] = frozenset({"loss", "gradients", "heldout", "layers", "hooks", "dynamics"})
"""Groups of signs that say how the training goes; the others are clocks, memory, and what commands set."""

NOT_OUTCOMES = frozenset({LEARNING_RATE, "train_loss"})
CLOCKS = ("_s", "_runtime", "_per_second")

Points = Mapping[int, float]
"""A metric's values by step."""

Series = Mapping[str, Points]
Window = Literal["last step", "last tenth", "area"]
WINDOWS: tuple[Window, ...] = ("last step", "last tenth", "area")


class Statistic(Message):
    """The effect on one metric in one window of steps, beside the placebos.

    window: `last step` and `last tenth` of the steps after the command: difference of the means. `area`: mean distance
        of the two curves over all steps after the command.
    run, without: means of the window in the recorded run and in its replay without the command.
    effect: the run minus the replay without it; of `area`, the distance, which has no sign.
    placebos: the same of each placebo, minus the replay without the command.
    spread: largest distance of a placebo; nearer: number of placebos that are nearer than the run.
    distinguishable: the run is farther away than every placebo.
    """

    window: Window
    first_step: int
    last_step: int
    run: float
    without: float
    effect: float
    placebos: tuple[float, ...]
    spread: float
    nearer: int
    distinguishable: bool


class MetricEffect(Message):
    """The effect on one metric. `points`: measurements after the command that all arms have."""

    name: str
    points: int
    statistics: tuple[Statistic, ...]

    def of(self, window: Window) -> Statistic:
        """Return the statistic of a window."""
        return next(each for each in self.statistics if each.window == window)


class Refusal(Message):
    """A command that the replay without the other one did not apply, as its ranks decided."""

    what: str
    step: int | None
    status: str
    reason: str | None = None


class EffectReport(Message):
    """Report of what one command of a run did.

    run, what, author: the recorded run and its command; without: where it took effect.
    replay: the run without the command; placebos: relative change of the learning rate by run.
    until: the proof that the replay is the run until the command's step.
    last_step: last step that was compared. rewritten, refused: later commands that were not repeated as sent.
    """

    run: str
    what: str
    author: str
    without: LeftOut
    replay: str
    placebos: dict[str, float]
    until: ReplayVerdict
    last_step: int
    metrics: tuple[MetricEffect, ...]
    rewritten: tuple[Rewritten, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="sentences that the user should see")


def is_outcome(name: str) -> bool:
    """Return whether a metric says how a training goes, and is neither a clock nor a setting."""
    sign = next((each for each in SIGNS if each.matches(name)), None)
    if sign is not None:
        return sign.group in OUTCOMES and not sign.is_timing
    return name not in NOT_OUTCOMES and not name.startswith(f"{LEARNING_RATE}/") and not name.endswith(CLOCKS)


def in_order(names: Iterable[str]) -> list[str]:
    """Return metrics in the order of a table: losses, then others, then those of single layers."""
    return sorted(names, key=lambda name: (name != "loss", not name.endswith("loss"), "/" in name, name))


def measure(run: Series, without: Series, placebos: Sequence[Series], step: int) -> tuple[MetricEffect, ...]:
    """Return the effect on every metric that all arms have measured at common steps after `step`.

    Args:
        run: of the recorded run; without: of its replay without the command; placebos: of the placebo replays.
    """
    arms = [run, without, *placebos]
    names = set.intersection(*(set(arm) for arm in arms))
    effects = (_effect(name, [arm[name] for arm in arms], step) for name in in_order(filter(is_outcome, names)))
    return tuple(each for each in effects if each is not None)


def _effect(name: str, arms: Sequence[Points], step: int) -> MetricEffect | None:
    steps = sorted(set.intersection(*(set(points) for points in arms)))
    steps = [each for each in steps if each > step]
    if not steps:
        return None
    late_from = steps[-1] - LATE_SHARE * (steps[-1] - step)
    late = [each for each in steps if each > late_from] or steps[-1:]
    windows: tuple[tuple[Window, list[int], Callable[[Points, Points, Sequence[int]], float]], ...] = (
        ("last step", steps[-1:], _difference),
        ("last tenth", late, _difference),
        ("area", steps, _distance),
    )
    statistics = (_statistic(window, chosen, arms, compared) for window, chosen, compared in windows)
    return MetricEffect(name=name, points=len(steps), statistics=tuple(statistics))


def _statistic(
    window: Window,
    steps: Sequence[int],
    arms: Sequence[Points],
    compared: Callable[[Points, Points, Sequence[int]], float],
) -> Statistic:
    run, without, *others = arms
    effect, placebos = compared(run, without, steps), tuple(compared(each, without, steps) for each in others)
    nearer = sum(abs(each) < abs(effect) for each in placebos)
    return Statistic(
        window=window,
        first_step=steps[0],
        last_step=steps[-1],
        run=_mean(run, steps),
        without=_mean(without, steps),
        effect=effect,
        placebos=placebos,
        spread=max((abs(each) for each in placebos), default=inf),
        nearer=nearer,
        distinguishable=bool(placebos) and nearer == len(placebos),
    )


def _mean(points: Points, steps: Sequence[int]) -> float:
    return sum(points[step] for step in steps) / len(steps)


def _difference(one: Points, other: Points, steps: Sequence[int]) -> float:
    return _gap(_mean(one, steps), _mean(other, steps))


def _distance(one: Points, other: Points, steps: Sequence[int]) -> float:
    return sum(abs(_gap(one[step], other[step])) for step in steps) / len(steps)


def _gap(one: float, other: float) -> float:
    """Return the difference; infinite if only one of the two is finite, 0 if neither is."""
    if isfinite(one) and isfinite(other):
        return one - other
    return 0.0 if isfinite(one) == isfinite(other) else (-inf if isfinite(one) else inf)
