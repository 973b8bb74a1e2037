"""Overhead estimate from pairs of times: a trimmed mean of paired ratios with a block bootstrap interval.

Times of neighbouring measurements are divided, so that a slow drift of the machine cancels. The ratios of neighbouring
pairs are still correlated, as a burst of other work lasts longer than one pair: so blocks of neighbours are resampled
(the circular block bootstrap of Politis and Romano, 1992). The interval is widened for few pairs as a t interval is
(the expanded percentile interval of Hesterberg, 2015).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
SEED = 20260101
TRIMMED = 0.1
"""Share of the ratios that is trimmed at either end, against bursts of other work in one arm of a pair."""

FEWEST_RUNS = 3
"""With fewer blocks there is an estimate without an interval."""


@dataclass(frozen=True)
class Estimate:
    """Overhead of the first of each pair in percent, with a 95 % interval. Below 0 it took less time."""

    percent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:+.2f} % ({self.low:+.2f} to {self.high:+.2f})"

    def figures(self, name: str) -> dict[str, float]:
        """Return the estimate and its interval as figures of a result."""
        return {name: self.percent, f"{name}_low": self.low, f"{name}_high": self.high}

    def exceeds(self, percent: float) -> bool:
        """Return whether the overhead is significantly greater: the whole interval lies above."""
        return self.low > percent


def overhead(with_it: Sequence[float], without: Sequence[float], run_length: int, share: float = 0.95) -> Estimate:
    """Estimate the overhead of the times `with_it` over those `without`, in the order they were measured.

    `run_length` is the size of a block of neighbouring pairs; 1 if the pairs are independent of each other.
    """
    ratios = np.log(np.asarray(with_it, dtype=float) / np.asarray(without, dtype=float))
    if len(ratios) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    middle = float(_trimmed_means(ratios[None, :])[0])
    runs = len(ratios) // run_length
    if runs < FEWEST_RUNS:
        return Estimate(_percent(middle), -math.inf, math.inf)
    means = _trimmed_means(ratios[_drawn(len(ratios), run_length)])
    tail = _expanded_tail((1 - share) / 2, runs)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(_percent(middle), _percent(float(low)), _percent(float(high)))


def _drawn(pairs: int, run_length: int) -> npt.NDArray[np.int64]:
    """Return the indices of the pairs of each resample: blocks at random positions; the first pair follows the last."""
    chance = np.random.default_rng(SEED)
    runs = math.ceil(pairs / run_length)
    begins = chance.integers(0, pairs, size=(RESAMPLES, runs, 1))
    drawn: npt.NDArray[np.int64] = (begins + np.arange(run_length)).reshape(RESAMPLES, -1)[:, :pairs] % pairs
    return drawn


def _trimmed_means(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cut = int(TRIMMED * rows.shape[1])
    means: npt.NDArray[np.float64] = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1)
    return means


def _expanded_tail(tail: float, runs: int) -> float:
    """Return the tail of a bootstrap distribution of `runs` blocks that gives the coverage of a t interval."""
    return NormalDist().cdf(-math.sqrt(runs / (runs - 1)) * t_quantile(1 - tail, runs - 1))


def t_quantile(share: float, freedom: int) -> float:
    """Return Student's t quantile, by an expansion (Abramowitz and Stegun 26.7.5); within 1 % from 5 degrees on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
