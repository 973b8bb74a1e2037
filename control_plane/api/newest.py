"""The newest value of each series on the branch that is trained, as far as its trainers have come: what is current."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.api.handle import Point, Result, Stretch
from control_plane.core.model.records import BranchResumed, BranchStarted, Entry, GenerationStarted
from control_plane.core.model.state import RunState


class Measured(Protocol):
    """What is asked of a metrics store."""

    def latest(self) -> dict[str, float]:
        """The newest value of each name, wherever it was measured."""
        ...

    def results(self, stretches: Sequence[Stretch], names: Sequence[str]) -> tuple[Result, ...]:
        """What these metrics came to on each stretch."""
        ...


def newest_on(metrics: Measured, branch: str, last: int | None = None) -> dict[str, float]:
    """The newest value of each name on a branch, up to step `last`."""
    found = metrics.results((Stretch(branch=branch, last=last),), tuple(metrics.latest()))
    return {result.name: result.last.value for result in found}


class NewestValues:
    """Follows a run: what was measured on a branch that it left, or beyond where it went back to, is not current."""

    def __init__(self, metrics: Measured, state: RunState) -> None:
        """Of a run that may be at work already."""
        self._metrics = metrics
        self.values = {} if state.switching else newest_on(metrics, state.head)

    def follow(self, entries: Sequence[Entry]) -> None:
        """Trainers that begin at a checkpoint stand where it stands."""
        for entry in entries:
            if isinstance(entry.record, BranchStarted | BranchResumed):
                self.values = {}
            elif isinstance(entry.record, GenerationStarted):
                self.values = newest_on(self._metrics, entry.record.branch, entry.record.step)

    def note(self, points: Sequence[Point]) -> None:
        """What the trainers have measured, as far as it was kept."""
        kept = self._metrics.latest()
        self.values |= {point.name: point.value for point in points if point.name in kept}
