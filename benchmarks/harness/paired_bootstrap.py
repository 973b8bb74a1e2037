"""How much longer something takes, from pairs of times: a mean of paired ratios with a block bootstrap interval.

What two neighbours in time took is divided, so that a slow drift of the machine is in both and cancels. The ratios of
neighbouring pairs still resemble each other, as a burst of other work lasts longer than one pair: whole runs of
neighbours are drawn anew, not single ones (the circular block bootstrap of Politis and Romano, 1992). The interval is
widened for few pairs as a t interval is (the expanded percentile interval of Hesterberg, 2015).
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
"""So much of the ratios is left out at either end: a burst of other work in one arm of a pair says nothing."""

FEWEST_RUNS = 3
"""With fewer runs of neighbours than these there is an estimate and no interval."""


@dataclass(frozen=True)
class Estimate:
    """By how many percent the first of each pair took longer, with a 95 % interval. Below 0 it took less."""

    percent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:+.2f} % ({self.low:+.2f} to {self.high:+.2f})"

    def figures(self, name: str) -> dict[str, float]:
        """The three of them, as figures of a result."""
        return {name: self.percent, f"{name}_low": self.low, f"{name}_high": self.high}

    def exceeds(self, percent: float) -> bool:
        """Whether it is shown that it takes longer by more than so much: the whole interval lies above."""
        return self.low > percent


def overhead(with_it: Sequence[float], without: Sequence[float], run_length: int, share: float = 0.95) -> Estimate:
    """How much longer the times `with_it` are than those `without` beside them, in the order they were measured.

    `run_length` neighbouring pairs are drawn together; 1 takes the pairs for independent of each other.
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
    """Which pairs make up each resample: runs from random beginnings; behind the last pair comes the first."""
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
    """What is to be cut off a bootstrap distribution of `runs` runs, so that it covers what a t interval would."""
    return NormalDist().cdf(-math.sqrt(runs / (runs - 1)) * _t_quantile(1 - tail, runs - 1))


def _t_quantile(share: float, freedom: int) -> float:
    """Student's t by its expansion about the normal (Abramowitz and Stegun 26.7.5); within 1 % from 5 on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
