"""Names of the metrics that a page has asked for, with the cursor of each request."""

from collections.abc import Iterable
from dataclasses import dataclass

from ui.charts.layout import PANELS

MAX_NAMES = 64
"""Names in one request; the gateway takes no more."""

EVERY_RUN = ("loss", "eval_loss", "lr", "grad_norm", "steps_per_s")
"""Metrics of the main charts that are asked for even where the newest measurements lack them: a branch that has just
begun has no evaluation yet, but its parent has."""


@dataclass(slots=True)
class Batch:
    """Metrics that are fetched together: their names, and the cursor behind the last point."""

    names: tuple[str, ...]
    cursor: int = 0


class Batches:
    """Batches of names. A metric that the run begins to measure, or that is shown for the first time, is a new batch.

    So no point of it is missed, none is fetched twice, and what nobody looks at is never fetched: a run with signs of
    every layer measures a hundred times what the main charts draw.
    """

    def __init__(self) -> None:
        """Start without names."""
        self._batches: list[Batch] = []

    def of(self, names: Iterable[str]) -> list[Batch]:
        """Return the batches that hold these names; new names become a batch of their own."""
        wanted = set(names)
        new = sorted(wanted - {name for batch in self._batches for name in batch.names})
        self._batches += [Batch(tuple(new[at : at + MAX_NAMES])) for at in range(0, len(new), MAX_NAMES)]
        return [batch for batch in self._batches if wanted.intersection(batch.names)]

    def merge(self) -> None:
        """Join batches that have reached the same cursor, for fewer requests."""
        merged: dict[int, Batch] = {}
        left: list[Batch] = []
        for batch in self._batches:
            into = merged.setdefault(batch.cursor, batch)
            if into is not batch and len(into.names) + len(batch.names) <= MAX_NAMES:
                into.names += batch.names
            else:
                merged[batch.cursor] = batch
                left.append(batch)
        self._batches = left


def main_names(known: Iterable[str]) -> list[str]:
    """Return the metrics of the main charts: those of every run, and others among what this run has measured."""
    return [*EVERY_RUN, *(name for name in known if any(panel.takes(name) for panel in PANELS))]
