"""What metrics came to, found in the simplest way: for stores without a disk, and to check the one that has one."""

import math
from collections.abc import Sequence

from control_plane.api.messages import MeasuredValue, MetricSummary, Point, StepRange


def results_of(
    points: Sequence[Point], stretches: Sequence[StepRange], names: Sequence[str]
) -> tuple[MetricSummary, ...]:
    """As `MetricsStore.results`."""
    found = [_result(points, stretch, name) for stretch in stretches for name in names]
    return tuple(each for each in found if each is not None)


def _result(points: Sequence[Point], stretch: StepRange, name: str) -> MetricSummary | None:
    kept: list[Point] = []
    for point in points:
        if point.name == name and point.branch == stretch.branch:
            kept = [each for each in kept if each.step < point.step] + [point]
    last = math.inf if stretch.last is None else stretch.last
    kept = [each for each in kept if stretch.first <= each.step <= last]
    finite = [each for each in kept if math.isfinite(each.value)]
    if not kept:
        return None
    lowest = min(finite, key=lambda each: each.value, default=None)
    return MetricSummary(
        name=name,
        stretch=stretch,
        last=MeasuredValue(step=kept[-1].step, value=kept[-1].value),
        lowest=MeasuredValue(step=lowest.step, value=lowest.value) if lowest else None,
    )
