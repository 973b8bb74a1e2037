"""Interfaces of the journal, the metrics store and the adoption of checkpoints, as the control server uses them."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from control_plane.api.messages import Measurements, MetricSummary, Point, StepRange
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import Entry, Record
from control_plane.core.rules.branch_rules import AdoptedCheckpoint
from control_plane.core.rules.unrecorded import UnrecordedCheckpoint


class JournalWriter(Protocol):
    """Interface of the journal; `storage.journal.Journal` in production."""

    @property
    def term(self) -> int:
        """This writer's term."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries read when the journal was opened."""
        ...

    def append(self, records: Sequence[Record], now: str) -> list[Entry]:
        """Make records durable. Raises `Fenced` or `Unavailable`; then nothing may be confirmed."""
        ...


class MeasurementStore(Protocol):
    """Interface of the metrics store; `storage.metrics.MetricsStore` in production."""

    def add(self, points: Sequence[Point]) -> None:
        """Store points."""
        ...

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Return points after a cursor."""
        ...

    def latest(self) -> dict[str, float]:
        """Return the newest value of each name."""
        ...

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """Return a summary of each metric over each step range."""
        ...


FindUnrecorded = Callable[[Collection[str]], list[UnrecordedCheckpoint]]
"""Finds the checkpoints on the disk, but for the names that it is given."""

Adopt = Callable[[AdoptCheckpoint, str, frozenset[str]], AdoptedCheckpoint]
"""Copies a checkpoint of another run for the branch of this name; the set: checkpoints in the journal already."""


def adopt_nothing(intent: AdoptCheckpoint, branch: str, known: frozenset[str]) -> AdoptedCheckpoint:
    """Raise `Unavailable`: the adoption of a server without files."""
    raise Unavailable("this control server has no files to which a checkpoint could be copied")
