"""Measurement window of the autopilot: the newest losses, evaluations and gradient norms of a run, read by cursor."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from control_plane.agent.mixing import SourceSeries
from control_plane.api.messages import Measurements

METRIC_NAMES = ("loss", "eval_loss", "lr", "grad_norm")
MEASUREMENTS_PER_PAGE = 5000
MAX_NAMES_ASKED = 64
"""Names that the gateway takes in one request; of more sources than that leaves room for, everything is read."""

MAX_PAGES_PER_POLL = 20
"""Joining a long run late reads its past in a few polls, without blocking Ctrl-C."""


class MeasurementReader(Protocol):
    """Reader interface for measurements. May raise `Unavailable` or `Refused`."""

    def metrics(self, run: str, after: int = 0, limit: int = ..., names: tuple[str, ...] = ()) -> Measurements:
        """Return metric points after the cursor `after`."""
        ...


class Measured:
    """Measurement window: the newest values of a run, read by cursor. Invariant: the steps of each series rise."""

    def __init__(self, window_points: int) -> None:
        self.losses: deque[tuple[int, float]] = deque(maxlen=window_points)
        self.evals: deque[tuple[int, float]] = deque(maxlen=window_points)
        self.grad_norms: deque[tuple[int, float]] = deque(maxlen=window_points)
        self.sources = SourceSeries()
        self.eval_loss: float | None = None
        self._lr: tuple[int, float] | None = None
        self._peak_lr = 0.0
        self._cursor = 0

    @property
    def newest_step(self) -> int | None:
        """Return the step of the newest loss, None before the first."""
        return self.losses[-1][0] if self.losses else None

    def read(self, client: MeasurementReader, run: str, sources: Iterable[str] = ()) -> bool:
        """Read the new points since the last call; return whether that was all of them.

        Args:
            sources: of the run's data, of which the measurements are read, too.
        """
        names = METRIC_NAMES + self.sources.names(sources)
        if len(names) > MAX_NAMES_ASKED:
            names = ()  # all
        for _ in range(MAX_PAGES_PER_POLL):
            page = client.metrics(run, after=self._cursor, limit=MEASUREMENTS_PER_PAGE, names=names)
            self._cursor = page.cursor
            for point in page.points:
                self._take(point.name, point.step, point.value)
            if len(page.points) < MEASUREMENTS_PER_PAGE:
                return True
        return False

    def _take(self, name: str, step: int, value: float) -> None:
        if name == "loss":
            _append(self.losses, step, value)
        elif name == "eval_loss":
            self.eval_loss = value
            _append(self.evals, step, value)
        elif name == "grad_norm":
            _append(self.grad_norms, step, value)
        elif name == "lr":
            self._lr = (step, value)
            self._peak_lr = max(self._peak_lr, value) if math.isfinite(value) else self._peak_lr
        else:
            self.sources.take(name, step, value)

    def forget(self) -> None:
        """Clear the series: another generation measures them anew. Those of sources hold a whole run."""
        for series in (self.losses, self.evals, self.grad_norms):
            series.clear()

    def peak_lr(self, live_lr: tuple[float, ...]) -> float:
        """Return the highest learning rate ever measured, over all groups, assuming the ratios of `live_lr`.

        Only group 0 is measured. Measurements are read from the start of the run, so a restart forgets none.
        """
        ratios = [lr / live_lr[0] for lr in live_lr] if live_lr and live_lr[0] > 0 else []
        return self._peak_lr * max([1.0, *filter(math.isfinite, ratios)])

    def live_lr(self, knobs: tuple[float, ...], changed_at: int | None) -> tuple[float, ...]:
        """Return the current learning rate of every group.

        `knobs` are as of the last command; since then a schedule may have moved them, which shows in the measured `lr`
        of group 0. The other groups are assumed to have moved by the same factor.
        """
        if self._lr is None or (changed_at is not None and self._lr[0] <= changed_at):
            return knobs
        measured = self._lr[1]
        if not knobs or knobs[0] <= 0:
            return (measured,) * max(1, len(knobs))
        return tuple(lr * measured / knobs[0] for lr in knobs)


def _append(series: deque[tuple[int, float]], step: int, value: float) -> None:
    while series and series[-1][0] >= step:
        series.pop()  # rolled back: these steps are no longer part of the history
    series.append((step, value))
