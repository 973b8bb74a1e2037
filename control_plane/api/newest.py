"""Current metric values: the newest of each series on the current branch, up to its trainers' step."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.api.messages import MetricSummary, Point, StepRange
from control_plane.core.model.records import BranchResumed, BranchStarted, Entry, GenerationStarted
from control_plane.core.model.state import RunState


class MetricsReader(Protocol):
    """Interface of a metrics store."""

    def latest(self) -> dict[str, float]:
        """Return the newest value of each name, on any branch."""
        ...

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """Return a summary of each metric over each step range."""
        ...


def newest_on(metrics: MetricsReader, branch: str, last: int | None = None) -> dict[str, float]:
    """Return the newest value of each name on a branch, up to step `last`."""
    results = metrics.results((StepRange(branch=branch, last=last),), tuple(metrics.latest()))
    return {result.name: result.last.value for result in results}


class NewestValues:
    """Current metric values of a live run: those of a branch it has left, or of undone steps, are dropped."""

    def __init__(self, metrics: MetricsReader, state: RunState) -> None:
        """Start from the values in the store."""
        self._metrics = metrics
        self.values = {} if state.switching else newest_on(metrics, state.tree.head)

    def follow(self, entries: Sequence[Entry]) -> None:
        """Reset the values where a branch or a generation begins."""
        for entry in entries:
            if isinstance(entry.record, BranchStarted | BranchResumed):
                self.values = {}
            elif isinstance(entry.record, GenerationStarted):
                self.values = newest_on(self._metrics, entry.record.branch, entry.record.step)

    def note(self, points: Sequence[Point]) -> None:
        """Take over new points, as far as the store kept them."""
        kept = self._metrics.latest()
        self.values |= {point.name: point.value for point in points if point.name in kept}
