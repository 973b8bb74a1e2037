"""Fit of a source's learning curve: L(n) = E + A n^-alpha, the loss after n of its samples.

ADO (arXiv 2410.11820) fits log E, log A and alpha by L-BFGS from a grid, by the Huber loss (1e-3) of the logarithm's
error. Here the same loss is made least by another way, without a library: for a given alpha the curve is linear in E
and A, so these follow from weighted least squares, repeated with the Huber loss's weights; alpha is searched on a grid
that is made finer around the best. Points are first averaged within 48 ranges of log n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log

HUBER = 1e-3
"""Error of the logarithm from which on it counts linearly."""

BINS = 48
LEAST_POINTS = 8
ROUNDS = 12
GRID, FINER, LEVELS = 25, 9, 3
SMALLEST_ALPHA, LARGEST_ALPHA = 0.02, 2.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Learning curve: `floor` is E, in the unit of the loss; `scale` is A; `alpha` has no unit."""

    floor: float
    scale: float
    alpha: float

    def loss(self, samples: float) -> float:
        """Return the loss after so many samples, above 0."""
        return self.floor + self.scale * exp(-self.alpha * log(samples))

    def slope(self, samples: float) -> float:
        """Return by how much the loss falls with the next sample: alpha (L(n) - E) / n, not below 0."""
        return self.alpha * (self.loss(samples) - self.floor) / samples


def fit(points: Points) -> PowerLaw | None:
    """Return the curve of (samples, loss), or None: too few points, none that falls, or it is not finite."""
    good = [(n, loss) for n, loss in points if n > 0 and loss > 0 and isfinite(n) and isfinite(loss)]
    if len(good) < LEAST_POINTS:
        return None
    binned = _binned(good)
    if len(binned) < LEAST_POINTS // 2:
        return None
    ratio = (LARGEST_ALPHA / SMALLEST_ALPHA) ** (1 / (GRID - 1))
    alphas = [SMALLEST_ALPHA * ratio**place for place in range(GRID)]
    best, cost = None, inf
    for _ in range(LEVELS + 1):
        for alpha in alphas:
            curve, error = _given(alpha, binned)
            if curve is not None and error < cost:
                best, cost = curve, error
        if best is None:
            return None
        low, ratio = best.alpha / ratio, ratio ** (2 / (FINER + 1))
        finer = (low * ratio**place for place in range(1, FINER + 1))
        alphas = [alpha for alpha in finer if SMALLEST_ALPHA <= alpha <= LARGEST_ALPHA]
    is_finite = best is not None and all(map(isfinite, (best.floor, best.scale, best.alpha)))
    return best if is_finite else None


def _binned(points: Points) -> list[tuple[float, float, float]]:
    """Return mean samples, mean loss and number of the points in each range of log n."""
    low = log(min(n for n, _ in points))
    width = max((log(max(n for n, _ in points)) - low) / BINS, 1e-9)
    sums: dict[int, tuple[float, float, int]] = {}
    for n, loss in points:
        place = min(BINS - 1, int((log(n) - low) / width))
        samples, losses, count = sums.get(place, (0.0, 0.0, 0))
        sums[place] = samples + n, losses + loss, count + 1
    return [(samples / count, losses / count, float(count)) for samples, losses, count in sums.values()]


def _given(alpha: float, points: list[tuple[float, float, float]]) -> tuple[PowerLaw | None, float]:
    """Return the best curve of this alpha and its cost; None where the loss does not fall."""
    first = min(n for n, _, _ in points)
    rows = [(exp(-alpha * log(n / first)), loss, log(loss), count) for n, loss, count in points]
    factors = [1.0] * len(rows)
    floor = scale = 0.0
    for _ in range(ROUNDS):
        w = xw = xxw = yw = xyw = 0.0
        for (x, y, _, count), factor in zip(rows, factors, strict=True):
            weight = count * factor / (y * y)  # an error of y, over y, is one of log y
            w, xw, xxw = w + weight, xw + weight * x, xxw + weight * x * x
            yw, xyw = yw + weight * y, xyw + weight * x * y
        determinant = w * xxw - xw * xw
        if determinant <= 1e-12 * w * xxw:
            return None, inf
        scale, floor = (w * xyw - xw * yw) / determinant, (xxw * yw - xw * xyw) / determinant
        if floor < 0:
            floor, scale = 0.0, xyw / xxw
        if scale <= 0:
            return None, inf
        errors = [abs(log(floor + scale * x) - log_y) for x, _, log_y, _ in rows]
        factors = [1.0 if error <= HUBER else HUBER / error for error in errors]
    cost = sum(row[3] * _huber(error) for row, error in zip(rows, errors, strict=True))
    return PowerLaw(floor, scale * exp(alpha * log(first)), alpha), cost


def _huber(error: float) -> float:
    return error * error / 2 if error <= HUBER else HUBER * (error - HUBER / 2)
