"""Hidden Markov model of training dynamics: its features, its filter, and the model that is built in.

After Hu et al. 2023 (Latent State Models of Training Dynamics, arXiv 2308.09543): a few hidden states explain the signs
of earlier runs, and a new run is followed through them. `control_plane.compare.dynamics` fits a model; this module only
evaluates one, so that all machines agree.
"""

from collections.abc import Mapping, Sequence
from math import exp, log, pi
from typing import Any

from control_plane.core.health.settings import DynamicsModel
from control_plane.core.health.windows import Window, deviation, mean, median, noise_between

FEATURES = ("drift of the loss", "gradient norm", "noise of the loss")
"""Features of a block, each dimensionless: its mean loss minus that of the blocks before, in deviations; and the
logarithms of gradient norm and of the loss's deviation, relative to their medians."""

MOST = 6.0
"""Bound of every feature: one absurd value must not decide for a state for ever."""

PAST_BLOCKS = 24
LEAST_BLOCKS = 6
LEAST_DENSITY = 1e-30
LEAST_DEVIATION = 0.05


class Features:
    """Features of blocks of steps, from loss and gradient norm."""

    def __init__(self, block_steps: int) -> None:
        self.block_steps = block_steps
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.past = {name: Window(PAST_BLOCKS) for name in ("loss", "noise", "norm")}

    def push(self, loss: float, norm: float | None) -> tuple[float, ...] | None:
        """Add one step. Return the features of the block that it has completed, or None."""
        self.losses.append(loss)
        if norm is not None and norm > 0:
            self.norms.append(norm)
        if len(self.losses) < self.block_steps:
            return None
        level, noise = mean(self.losses), max(deviation(self.losses), 1e-12)
        norm_level = mean(self.norms) if self.norms else None
        row = self._row(level, noise, norm_level)
        for name, value in (("loss", level), ("noise", noise), ("norm", norm_level)):
            if value is not None:
                self.past[name].push(value)
        self.losses, self.norms = [], []
        return row

    def _row(self, level: float, noise: float, norm: float | None) -> tuple[float, ...] | None:
        losses, noises, norms = (self.past[name].values for name in ("loss", "noise", "norm"))
        if len(losses) < LEAST_BLOCKS:
            return None
        step = max(noise_between(losses), 1e-3 * abs(level), 1e-12)
        features = (
            (level - mean(losses[-LEAST_BLOCKS:])) / step,
            log(norm) - log(median(norms)) if norm is not None and norms else 0.0,
            log(noise / median(noises)),
        )
        return tuple(max(-MOST, min(MOST, value)) for value in features)

    def state(self) -> dict[str, Any]:
        """Return the block in progress and the past ones as JSON."""
        past = {name: window.state() for name, window in self.past.items()}
        return {"losses": list(self.losses), "norms": list(self.norms), "past": past}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.losses, self.norms = list(map(float, state["losses"])), list(map(float, state["norms"]))
        for name, values in state["past"].items():
            self.past[name].restore(values)


def densities(model: DynamicsModel, row: Sequence[float]) -> list[float]:
    """Return the density of a row of features in each state (independent normal distributions)."""
    result = []
    for means, deviations in zip(model.means, model.deviations, strict=True):
        total = 0.0
        for value, middle, width in zip(row, means, deviations, strict=True):
            total += -0.5 * ((value - middle) / width) ** 2 - log(width) - 0.5 * log(2 * pi)
        result.append(max(LEAST_DENSITY, exp(total)))
    return result


def forward(model: DynamicsModel, before: Sequence[float] | None, row: Sequence[float]) -> list[float]:
    """Return the probability of each state after a row of features, given those before it (None: at the start)."""
    count = len(model.start)
    if before is None:
        prior = list(model.start)
    else:
        prior = [sum(before[one] * model.transition[one][two] for one in range(count)) for two in range(count)]
    joint = [one * two for one, two in zip(prior, densities(model, row), strict=True)]
    total = sum(joint)
    return [value / total for value in joint] if total > 0 else prior


BUILT_IN = DynamicsModel(
    states=["settling", "calm", "restless", "bad"],
    bad=[3],
    block_steps=10,
    start=[0.6, 0.3, 0.09, 0.01],
    transition=[
        [0.94, 0.05, 0.009, 0.001],
        [0.01, 0.97, 0.019, 0.001],
        [0.02, 0.15, 0.82, 0.01],
        [0.01, 0.01, 0.03, 0.95],
    ],
    means=[[-2.5, -0.15, -0.1], [-0.4, 0.0, 0.0], [0.3, 0.3, 0.3], [4.0, 1.2, 0.9]],
    deviations=[[1.5, 0.4, 0.5], [1.2, 0.25, 0.4], [1.5, 0.7, 0.6], [2.0, 1.2, 0.9]],
)
"""Model for runs without one of their own: widths are those of healthy small trainings, the bad state is what planted
faults look like. Fit your own from your runs, and name it in `health.dynamics.model`."""
