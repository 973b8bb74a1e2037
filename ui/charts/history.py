"""Cache of a run's metrics in a page: appended to, never fetched twice."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from control_plane.api.messages import Measurements, Point, StepRange
from ui.charts.bins import Floats


@dataclass(slots=True)
class Average:
    """Incremental exponential moving average, with the correction of the bias towards zero at the start."""

    weight: float
    values: "array[float]" = field(default_factory=lambda: array("d"))
    moment: float = 0.0
    count: int = 0

    def extend(self, values: Iterable[float]) -> None:
        """Append values. One that is not finite does not change the average."""
        for value in values:
            if math.isfinite(value):
                self.count += 1
                self.moment = self.weight * self.moment + (1 - self.weight) * value
            correction = 1 - self.weight**self.count
            self.values.append(self.moment / correction if correction else math.nan)


@dataclass(slots=True)
class Series:
    """Series of one metric: steps, values and Unix times.

    Invariant: `steps` increases. After a restart from a checkpoint some steps are repeated: their earlier values are
    removed, so that the last value of a step counts and no line is drawn backwards. `restarts` holds the indices where
    that happened, where a time axis has a gap; `undone` counts how often it did.
    """

    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    restarts: list[int] = field(default_factory=list)
    undone: int = 0
    average: Average = field(default_factory=lambda: Average(0.0))

    def append(self, point: Point) -> None:
        """Append a point; removes the points at and after its step."""
        if self.steps and point.step <= self.steps[-1]:
            self._undo(bisect_left(self.steps, point.step))
        self.steps.append(point.step)
        self.values.append(point.value)
        self.times_s.append(point.time_s)

    def _undo(self, kept: int) -> None:
        """Remove all but the first `kept` points."""
        self.undone += 1
        del self.steps[kept:], self.values[kept:], self.times_s[kept:]
        self.restarts = [*(index for index in self.restarts if index < kept), kept]
        if len(self.average.values) > kept:
            self.average = Average(self.average.weight)

    def take(self, other: "Series", start: int, end: int, begins: bool) -> None:
        """Append points of another series. `begins`: they are the first ones of another branch."""
        if start >= end:
            return
        if self.steps and other.steps[start] <= self.steps[-1]:
            self._undo(bisect_left(self.steps, other.steps[start]))
        elif self.steps and begins:
            self.restarts.append(len(self.steps))
        shift = len(self.steps) - start
        self.restarts += [index + shift for index in other.restarts if start < index < end]
        self.steps += other.steps[start:end]
        self.values += other.values[start:end]
        self.times_s += other.times_s[start:end]

    def smoothed(self, weight: float) -> Floats:
        """Return the moving average at every point; only new points are computed."""
        if self.average.weight != weight:
            self.average = Average(weight)
        self.average.extend(self.values[len(self.average.values) :])
        return np.array(self.average.values)

    def pieces(self) -> list[slice]:
        """Return the ranges of points between restarts."""
        edges = [0, *self.restarts, len(self.steps)]
        return [slice(start, end) for start, end in pairwise(edges) if end > start]


@dataclass(frozen=True, slots=True)
class SeriesSlice:
    """Part of a branch's series that belongs to a line: the points from index `start` to `end`."""

    stretch: StepRange
    start: int
    end: int
    undone: int


@dataclass(slots=True)
class Joined:
    """Series that is joined from the parts of several branches."""

    cuts: list[SeriesSlice]
    series: Series = field(default_factory=Series)

    def is_continued_by(self, cuts: list[SeriesSlice]) -> bool:
        """Return whether these are the same cuts, of which the last may have become longer."""
        if len(cuts) != len(self.cuts) or cuts[:-1] != self.cuts[:-1]:
            return False
        return replace(cuts[-1], end=self.cuts[-1].end) == self.cuts[-1] and cuts[-1].end >= self.cuts[-1].end


class MetricsHistory:
    """Metrics of one run, by branch and name; `series` are those of the current line."""

    def __init__(self) -> None:
        """Start without metrics; the line is the branch with which every run begins."""
        self.cursor = 0
        self._branches: dict[str, dict[str, Series]] = {}
        self._line: tuple[StepRange, ...] = (StepRange(),)
        self._joined: dict[tuple[str, str], Joined] = {}

    def extend(self, metrics: Measurements, of: str = "") -> None:
        """Append the points since the last cursor. `of` is a prefix for the names of the branches."""
        for point in metrics.points:
            self._branches.setdefault(of + point.branch, {}).setdefault(point.name, Series()).append(point)
        self.cursor = metrics.cursor

    def follow(self, line: Sequence[StepRange]) -> None:
        """Set the line of `series`, from the root to the head."""
        self._line = tuple(line)

    @property
    def series(self) -> dict[str, Series]:
        """Metrics along the line, by name."""
        return self.along(self._line[-1].branch, self._line)

    @property
    def others(self) -> dict[str, dict[str, Series]]:
        """Metrics that are not on the line, by branch and name, from where their branch leaves the line."""
        ends = {stretch.branch: stretch.last for stretch in self._line}
        left = [name for name in self._branches if name not in ends or ends[name] is not None]
        by_branch = {
            name: self.along(f"{name} beside", (StepRange(branch=name, first=ends.get(name) or 0),)) for name in left
        }
        # A single point is the one where the branch leaves the line.
        return {
            name: by_name
            for name, by_name in by_branch.items()
            if any(len(series.steps) > 1 for series in by_name.values())
        }

    def along(self, what: str, line: Sequence[StepRange]) -> dict[str, Series]:
        """Return the metrics along a line, by name; `what` is the key under which they are cached."""
        if len(line) == 1 and line[0].first <= 0 and line[0].last is None:
            return self._branches.get(line[0].branch, {})
        names = dict.fromkeys(name for stretch in line for name in self._branches.get(stretch.branch, {}))
        made = {name: self._join(what, name, line) for name in names}
        return {name: series for name, series in made.items() if series.steps}

    def _join(self, what: str, name: str, line: Sequence[StepRange]) -> Series:
        """Return one metric along a line. Extends the cached series, and so its average, if possible."""
        cuts = [cut for stretch in line if (cut := self._cut(name, stretch)) is not None]
        known = self._joined.get((what, name))
        if known is None or not known.is_continued_by(cuts):
            known = self._joined[what, name] = Joined([replace(cut, end=cut.start) for cut in cuts])
        for cut, taken in zip(cuts, known.cuts, strict=True):
            begins = taken.end == cut.start
            known.series.take(self._branches[cut.stretch.branch][name], taken.end, cut.end, begins)
        known.cuts = cuts
        return known.series

    def _cut(self, name: str, stretch: StepRange) -> SeriesSlice | None:
        series = self._branches.get(stretch.branch, {}).get(name)
        if series is None:
            return None
        start = bisect_left(series.steps, stretch.first)
        end = len(series.steps) if stretch.last is None else bisect_right(series.steps, stretch.last)
        return SeriesSlice(stretch, start, max(start, end), series.undone)

    def _every(self) -> list[Series]:
        shown = [self.series, *self.others.values()]
        return [series for by_name in shown for series in by_name.values()]

    def started_at_s(self) -> float:
        """Return the Unix time of the first point; 0 if there is none."""
        return min((series.times_s[0] for series in self._every()), default=0.0)

    def extent(self, axis: str) -> tuple[float, float] | None:
        """Return the smallest and the largest x of all metrics (steps, or minutes since the first); None if empty."""
        started_at_s = self.started_at_s()
        every = [x_of(series, axis, started_at_s) for series in self._every()]
        if not every:
            return None
        return min(float(x.min()) for x in every), max(float(x.max()) for x in every)

    def x(self, series: Series, axis: str) -> Floats:
        """Return the x values of a series."""
        return x_of(series, axis, self.started_at_s() if axis == "time" else 0.0)


def x_of(series: Series, axis: str, started_at_s: float) -> Floats:
    """Return the x values of a series: its steps, or minutes since a time."""
    if axis == "time":
        return (np.array(series.times_s) - started_at_s) / 60
    return np.array(series.steps)
