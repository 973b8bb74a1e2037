"""Weak spots: sources of the data, and slices of them, ranked by the loss on the records that they hold out.

    spots = weak_spots(points, sources=("web", "fresh"))     # highest loss first
    weakest(spots)                                           # where more data is needed most, or None

Losses of different data have different floors: a noisy source stays at the top whatever is trained. Compare a spot with
its own past, too.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import hypot, isfinite

HELD_OUT_LOSS, HELD_OUT_ERROR = "eval_loss/", "eval_error/"
"""Prefixes of the mean loss, and of its standard error, of a source or of one of its slices: `SOURCE/SLICE`."""

CLEARLY = 2.0
"""Standard errors beyond which a difference is told from noise: about 95 of 100 times."""


@dataclass(frozen=True, slots=True)
class WeakSpot:
    """Loss of a source, or of a slice of it, at the last evaluation.

    error: standard error of the loss; None: not known. step: that of the evaluation.
    change: since the evaluation before; None at the first one. evaluations: how many there were on this line.
    """

    source: str
    slice: str
    loss: float
    error: float | None
    step: int
    change: float | None
    change_error: float | None
    evaluations: int

    @property
    def name(self) -> str:
        """Source, and slice behind a slash."""
        return f"{self.source}/{self.slice}" if self.slice else self.source

    @property
    def surely(self) -> float:
        """Loss that it has at least: two standard errors lower, or the mean where the error is not known."""
        return self.loss - CLEARLY * (self.error or 0.0)

    @property
    def has_changed(self) -> bool:
        """Return whether the change since the evaluation before is more than noise."""
        return self.change is not None and abs(self.change) > CLEARLY * (self.change_error or 0.0)

    def is_clearly_above(self, other: "WeakSpot") -> bool:
        """Return whether its loss is higher by more than noise; False if an error is not known."""
        if self.error is None or other.error is None:
            return False
        return self.loss - other.loss > CLEARLY * hypot(self.error, other.error)


def held_out_names(names: Iterable[str]) -> list[str]:
    """Return those of a run's measurements that weak spots are computed from."""
    return [name for name in names if name.startswith((HELD_OUT_LOSS, HELD_OUT_ERROR))]


def weak_spots(points: Iterable[tuple[str, int, float]], sources: Collection[str] | None = None) -> list[WeakSpot]:
    """Return the weak spots, highest loss first; then by name.

    Args:
        points: name, step and value of measurements, oldest first. One of an earlier step than the one before takes the
            place of those after it: the run was taken back.
        sources: of the run now; None: all that were measured. A slice counts if its source's last evaluation has it.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in points:
        if not name.startswith((HELD_OUT_LOSS, HELD_OUT_ERROR)) or not isfinite(value):
            continue
        line = series.setdefault(name, [])
        while line and line[-1][0] >= step:
            line.pop()
        line.append((step, value))
    losses = {name.removeprefix(HELD_OUT_LOSS): line for name, line in series.items() if name.startswith(HELD_OUT_LOSS)}
    newest = {name: line[-1][0] for name, line in losses.items()}
    spots = []
    for name, line in losses.items():
        source, _, of_slice = name.partition("/")
        if (sources is not None and source not in sources) or newest.get(source, line[-1][0]) != line[-1][0]:
            continue
        spots.append(_spot(source, of_slice, line, dict(series.get(HELD_OUT_ERROR + name, ()))))
    return sorted(spots, key=lambda spot: (-spot.loss, spot.name))


def _spot(source: str, of_slice: str, line: Sequence[tuple[int, float]], errors: dict[int, float]) -> WeakSpot:
    step, loss = line[-1]
    error = errors.get(step)
    if len(line) < 2:
        return WeakSpot(source, of_slice, loss, error, step, None, None, 1)
    before_step, before = line[-2]
    before_error = errors.get(before_step)
    # The records are the same ones, so that the error of a change is at most this.
    change_error = None if error is None or before_error is None else hypot(error, before_error)
    return WeakSpot(source, of_slice, loss, error, step, loss - before, change_error, len(line))


def weakest(spots: Iterable[WeakSpot], among: Collection[str] = ()) -> WeakSpot | None:
    """Return the spot whose loss is highest even at the low end of its error: a small slice does not win by noise.

    Of a source with slices it is one of these. `among`: sources to choose from; none: all.
    """
    known = list(spots)
    sliced = {spot.source for spot in known if spot.slice}
    chosen = [
        spot for spot in known if (spot.slice or spot.source not in sliced) and (not among or spot.source in among)
    ]
    return min(chosen, key=lambda spot: (-spot.surely, spot.name), default=None)
