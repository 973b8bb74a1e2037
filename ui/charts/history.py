"""What a page has heard of a run's measurements: appended to, never fetched twice."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from control_plane.api.handle import Measurements, Point, StepRange
from ui.charts.bins import Floats


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
    `restarts` holds the indices where that happened: before them time has passed of which nothing is left. `undone`
    counts how often it did.
    """

    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    restarts: list[int] = field(default_factory=list)
    undone: int = 0
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
        self.undone += 1
        del self.steps[kept:], self.values[kept:], self.times_s[kept:]
        self.restarts = [*(index for index in self.restarts if index < kept), kept]
        if len(self.average.values) > kept:
            self.average = Average(self.average.weight)

    def take(self, other: "Series", start: int, end: int, begins: bool) -> None:
        """These measurements of another series: of a branch that `begins` here, or more of the one that did before."""
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
        """The moving average at every point; only new points are computed."""
        if self.average.weight != weight:
            self.average = Average(weight)
        self.average.extend(self.values[len(self.average.values) :])
        return np.array(self.average.values)

    def pieces(self) -> list[slice]:
        """The measurements between one restart and the next."""
        edges = [0, *self.restarts, len(self.steps)]
        return [slice(start, end) for start, end in pairwise(edges) if end > start]


@dataclass(frozen=True, slots=True)
class Cut:
    """What a line takes of a branch's series: the measurements from index `start` to `end`."""

    stretch: StepRange
    start: int
    end: int
    undone: int


@dataclass(slots=True)
class Joined:
    """A series that was put together from these cuts."""

    cuts: list[Cut]
    series: Series = field(default_factory=Series)

    def is_continued_by(self, cuts: list[Cut]) -> bool:
        """Whether these are the same cuts, of which the last has become longer."""
        if len(cuts) != len(self.cuts) or cuts[:-1] != self.cuts[:-1]:
            return False
        return replace(cuts[-1], end=self.cuts[-1].end) == self.cuts[-1] and cuts[-1].end >= self.cuts[-1].end


class History:
    """Every metric of one run, by branch and by name; `series` are those of the line that is followed."""

    def __init__(self) -> None:
        """Nothing heard yet; followed is the branch with which every run begins."""
        self.cursor = 0
        self._branches: dict[str, dict[str, Series]] = {}
        self._line: tuple[StepRange, ...] = (StepRange(),)
        self._joined: dict[tuple[str, str], Joined] = {}

    def extend(self, heard: Measurements, of: str = "") -> None:
        """Take what came since the last cursor. `of` comes before the names of the branches."""
        for point in heard.points:
            self._branches.setdefault(of + point.branch, {}).setdefault(point.name, Series()).append(point)
        self.cursor = heard.cursor

    def follow(self, line: Sequence[StepRange]) -> None:
        """The line that `series` are about, from the root to the branch that is trained."""
        self._line = tuple(line)

    @property
    def series(self) -> dict[str, Series]:
        """Every metric along the line, by name."""
        return self.along(self._line[-1].branch, self._line)

    @property
    def others(self) -> dict[str, dict[str, Series]]:
        """What is no part of the line, by branch and name, from where it leaves the line."""
        ends = {stretch.branch: stretch.last for stretch in self._line}
        left = [name for name in self._branches if name not in ends or ends[name] is not None]
        found = {
            name: self.along(f"{name} beside", (StepRange(branch=name, first=ends.get(name) or 0),)) for name in left
        }
        # A single measurement is the one where the line leaves.
        return {name: series for name, series in found.items() if any(len(each.steps) > 1 for each in series.values())}

    def along(self, what: str, line: Sequence[StepRange]) -> dict[str, Series]:
        """Every metric along a line, by name; `what` is asked for again when there is more of it."""
        if len(line) == 1 and line[0].first <= 0 and line[0].last is None:
            return self._branches.get(line[0].branch, {})
        names = dict.fromkeys(name for stretch in line for name in self._branches.get(stretch.branch, {}))
        made = {name: self._join(what, name, line) for name in names}
        return {name: series for name, series in made.items() if series.steps}

    def _join(self, what: str, name: str, line: Sequence[StepRange]) -> Series:
        """One metric along a line. What was put together before is gone on with, and so is its average."""
        cuts = [cut for stretch in line if (cut := self._cut(name, stretch)) is not None]
        known = self._joined.get((what, name))
        if known is None or not known.is_continued_by(cuts):
            known = self._joined[what, name] = Joined([replace(cut, end=cut.start) for cut in cuts])
        for cut, taken in zip(cuts, known.cuts, strict=True):
            begins = taken.end == cut.start
            known.series.take(self._branches[cut.stretch.branch][name], taken.end, cut.end, begins)
        known.cuts = cuts
        return known.series

    def _cut(self, name: str, stretch: StepRange) -> Cut | None:
        series = self._branches.get(stretch.branch, {}).get(name)
        if series is None:
            return None
        start = bisect_left(series.steps, stretch.first)
        end = len(series.steps) if stretch.last is None else bisect_right(series.steps, stretch.last)
        return Cut(stretch, start, max(start, end), series.undone)

    def _every(self) -> list[Series]:
        shown = [self.series, *self.others.values()]
        return [series for by_name in shown for series in by_name.values()]

    def started_at_s(self) -> float:
        """The Unix time of the first measurement; 0 if there is none."""
        return min((series.times_s[0] for series in self._every()), default=0.0)

    def extent(self, axis: str) -> tuple[float, float] | None:
        """The smallest and the largest x over all metrics (steps, or minutes since the first); None if empty."""
        started_at_s = self.started_at_s()
        found = [x_of(series, axis, started_at_s) for series in self._every()]
        if not found:
            return None
        return min(float(x.min()) for x in found), max(float(x.max()) for x in found)

    def x(self, series: Series, axis: str) -> Floats:
        """Where a series' points are on the x axis."""
        return x_of(series, axis, self.started_at_s() if axis == "time" else 0.0)


def x_of(series: Series, axis: str, started_at_s: float) -> Floats:
    """Where a series' points are on the x axis: their steps, or minutes since a time."""
    if axis == "time":
        return (np.array(series.times_s) - started_at_s) / 60
    return np.array(series.steps)
