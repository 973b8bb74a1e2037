"""What a page has heard of a run's measurements: appended to, never fetched twice."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from control_plane.handle import Measurements, Point
from ui.bins import Floats


@dataclass(slots=True)
class Average:
    """An exponential moving average, without the bias towards zero at the start, that goes on where it stopped."""

    weight: float
    values: "array[float]" = field(default_factory=lambda: array("d"))
    moment: float = 0.0
    count: int = 0

    def extend(self, values: Iterable[float]) -> None:
        """Take more values. One that is not finite leaves the average as it was."""
        for value in values:
            if math.isfinite(value):
                self.count += 1
                self.moment = self.weight * self.moment + (1 - self.weight) * value
            correction = 1 - self.weight**self.count
            self.values.append(self.moment / correction if correction else math.nan)


@dataclass(slots=True)
class Series:
    """One metric: steps, values and Unix times.

    Invariant: `steps` rises. After a restart from a checkpoint some steps come again: what was measured there before
    is undone, as the steps themselves are, so that the last value of a step stands and no line is drawn backwards.
    `restarts` holds the indices where that happened: before them time has passed of which nothing is left.
    """

    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    restarts: list[int] = field(default_factory=list)
    average: Average = field(default_factory=lambda: Average(0.0))

    def append(self, point: Point) -> None:
        """One more measurement."""
        if self.steps and point.step <= self.steps[-1]:
            self._undo(bisect_left(self.steps, point.step))
        self.steps.append(point.step)
        self.values.append(point.value)
        self.times_s.append(point.time_s)

    def _undo(self, kept: int) -> None:
        """Keep the first `kept` measurements."""
        del self.steps[kept:], self.values[kept:], self.times_s[kept:]
        self.restarts = [*(index for index in self.restarts if index < kept), kept]
        if len(self.average.values) > kept:
            self.average = Average(self.average.weight)

    def smoothed(self, weight: float) -> Floats:
        """The moving average at every point; only new points are computed."""
        if self.average.weight != weight:
            self.average = Average(weight)
        self.average.extend(self.values[len(self.average.values) :])
        return np.array(self.average.values)

    def pieces(self) -> list[slice]:
        """The measurements between one restart and the next."""
        edges = [0, *self.restarts, len(self.steps)]
        return [slice(start, end) for start, end in pairwise(edges) if end > start]


class History:
    """Every metric of one run, by name."""

    def __init__(self) -> None:
        """Nothing heard yet."""
        self.series: dict[str, Series] = {}
        self.cursor = 0

    def extend(self, heard: Measurements) -> None:
        """Take what came since the last cursor."""
        for point in heard.points:
            self.series.setdefault(point.name, Series()).append(point)
        self.cursor = heard.cursor

    def started_at_s(self) -> float:
        """The Unix time of the first measurement; 0 if there is none."""
        return min((series.times_s[0] for series in self.series.values()), default=0.0)

    def extent(self, axis: str) -> tuple[float, float] | None:
        """The smallest and the largest x over all metrics (steps, or minutes since the first); None if empty."""
        found = [self.x(series, axis) for series in self.series.values()]
        if not found:
            return None
        return min(float(x.min()) for x in found), max(float(x.max()) for x in found)

    def x(self, series: Series, axis: str) -> Floats:
        """Where a series' points are on the x axis."""
        if axis == "time":
            return (np.array(series.times_s) - self.started_at_s()) / 60
        return np.array(series.steps)
