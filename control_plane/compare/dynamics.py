"""Fit the model of training dynamics to the signs of earlier runs: Baum-Welch, in plain Python.

    runs = [EarlierRun.of(losses, norms), EarlierRun.of(losses, norms, bad_from_step=1200), ...]
    model = fit(runs, states=4)
    health.dynamics.model in a config: model.model_dump()

Rabiner 1989, section III: forward and backward passes with scaling; here with independent normal densities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

from control_plane.core.health.dynamics import FEATURES, LEAST_DEVIATION, Features, densities, forward
from control_plane.core.health.settings import DynamicsModel

Row = tuple[float, ...]

LEAST_PROBABILITY = 1e-4
"""No transition is impossible: a run may do what none did before."""

LEAST_SHARE_OF_BAD = 0.5
"""A state is bad if more than this share of its blocks lie after the moment at which a run went wrong."""


@dataclass(frozen=True)
class EarlierRun:
    """Features of a run's blocks; `bad_from` is the first block that went wrong, None for a run that went well."""

    rows: tuple[Row, ...]
    bad_from: int | None = None

    @classmethod
    def of(
        cls,
        losses: Sequence[float],
        norms: Sequence[float],
        bad_from_step: int | None = None,
        block_steps: int = 10,
    ) -> "EarlierRun":
        """Return the features of a run from its finite loss and gradient norm at every step (both from step 1 on)."""
        features, bad_from = Features(block_steps), None
        rows: list[Row] = []
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
            if (row := features.push(loss, norm)) is not None:
                if bad_from is None and bad_from_step is not None and step >= bad_from_step:
                    bad_from = len(rows)
                rows.append(row)
        return cls(tuple(rows), bad_from)


@dataclass
class _Counts:
    """Expected counts of one pass over all runs."""

    start: list[float]
    transition: list[list[float]]
    weight: list[float]
    total: list[list[float]]
    square: list[list[float]]
    log_likelihood: float = 0.0

    @classmethod
    def empty(cls, states: int, width: int) -> "_Counts":
        square = [[0.0] * width for _ in range(states)]
        total = [[0.0] * width for _ in range(states)]
        return cls([0.0] * states, [[0.0] * states for _ in range(states)], [0.0] * states, total, square)


def fit(runs: Sequence[EarlierRun], states: int = 4, iterations: int = 30, block_steps: int = 10) -> DynamicsModel:
    """Return the model under which the runs are most likely, with states ordered from calm to bad.

    Deterministic: it begins with the blocks divided by their mean feature, not with chance.

    Raises:
        ValueError: fewer than ten blocks a state.
    """
    blocks = sum(len(run.rows) for run in runs)
    if blocks < 10 * states:
        raise ValueError(
            f"{blocks} blocks of {block_steps} steps are too few for {states} states: {10 * states} needed"
        )
    model = _first(runs, states, block_steps)
    for _ in range(iterations):
        model = _improved(model, _count(model, runs))
    return _with_bad_states(model, runs)


def log_likelihood(model: DynamicsModel, runs: Sequence[EarlierRun]) -> float:
    """Return the logarithm of the probability density of the runs under a model."""
    return _count(model, runs).log_likelihood


def _first(runs: Sequence[EarlierRun], states: int, block_steps: int) -> DynamicsModel:
    rows = sorted((row for run in runs for row in run.rows), key=lambda row: (sum(row), row))
    parts = [rows[len(rows) * part // states : len(rows) * (part + 1) // states] for part in range(states)]
    columns = [list(zip(*part, strict=True)) for part in parts]
    means = [[sum(column) / len(column) for column in part] for part in columns]
    spread = [
        [
            max(LEAST_DEVIATION, sqrt(sum((v - m) ** 2 for v in column) / len(column)))
            for column, m in zip(part, mean, strict=True)
        ]
        for part, mean in zip(columns, means, strict=True)
    ]
    stay, leave = 0.9, 0.1 / (states - 1)
    return DynamicsModel(
        states=[f"state {number}" for number in range(states)],
        bad=[],
        block_steps=block_steps,
        start=[1.0 / states] * states,
        transition=[[stay if one == two else leave for two in range(states)] for one in range(states)],
        means=means,
        deviations=spread,
    )


def _count(model: DynamicsModel, runs: Sequence[EarlierRun]) -> _Counts:
    counts = _Counts.empty(len(model.states), len(FEATURES))
    for run in runs:
        if run.rows:
            _count_run(model, run.rows, counts)
    return counts


def _count_run(model: DynamicsModel, rows: Sequence[Row], counts: _Counts) -> None:
    """Forward and backward pass over one run."""
    states = range(len(model.states))
    density = [densities(model, row) for row in rows]
    ahead: list[list[float]] = []
    scales: list[float] = []
    for at, one in enumerate(density):
        prior = model.start if at == 0 else [sum(ahead[-1][i] * model.transition[i][j] for i in states) for j in states]
        joint = [prior[j] * one[j] for j in states]
        scales.append(sum(joint))
        ahead.append([value / scales[-1] for value in joint])
        counts.log_likelihood += log(scales[-1])
    behind = [1.0 for _ in states]
    for at in range(len(rows) - 1, -1, -1):
        here = [ahead[at][j] * behind[j] for j in states]
        for j in states:
            counts.weight[j] += here[j]
            for feature, value in enumerate(rows[at]):
                counts.total[j][feature] += here[j] * value
                counts.square[j][feature] += here[j] * value * value
        if at == 0:
            counts.start = [total + value for total, value in zip(counts.start, here, strict=True)]
            break
        reach = [density[at][j] * behind[j] / scales[at] for j in states]
        for i in states:
            for j in states:
                counts.transition[i][j] += ahead[at - 1][i] * model.transition[i][j] * reach[j]
        behind = [sum(model.transition[i][j] * reach[j] for j in states) for i in states]


def _improved(model: DynamicsModel, counts: _Counts) -> DynamicsModel:
    means, spreads = [], []
    for weight, total, square in zip(counts.weight, counts.total, counts.square, strict=True):
        mean = [value / max(weight, 1e-9) for value in total]
        variance = [value / max(weight, 1e-9) - m * m for value, m in zip(square, mean, strict=True)]
        means.append(mean)
        spreads.append([max(LEAST_DEVIATION, sqrt(max(0.0, value))) for value in variance])
    changes = {
        "start": _shares(counts.start),
        "transition": [_shares(row) for row in counts.transition],
        "means": means,
        "deviations": spreads,
    }
    return DynamicsModel.model_validate(model.model_dump() | changes)


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    raw = [max(LEAST_PROBABILITY, value / total if total > 0 else 1.0) for value in counts]
    return [value / sum(raw) for value in raw]


def _with_bad_states(model: DynamicsModel, runs: Sequence[EarlierRun]) -> DynamicsModel:
    """Name the bad states, and put them last, by the blocks that lie after the moment at which a run went wrong."""
    states = range(len(model.states))
    bad, everything = [0.0 for _ in states], [0.0 for _ in states]
    for run in runs:
        probabilities: list[float] | None = None
        for at, row in enumerate(run.rows):
            probabilities = forward(model, probabilities, row)
            for state in states:
                everything[state] += probabilities[state]
                bad[state] += probabilities[state] if run.bad_from is not None and at >= run.bad_from else 0.0
    share = [bad[state] / everything[state] if everything[state] > 0 else 0.0 for state in states]
    order = sorted(states, key=lambda state: (share[state] > LEAST_SHARE_OF_BAD, sum(model.means[state])))
    is_bad = [share[state] > LEAST_SHARE_OF_BAD for state in order]
    return DynamicsModel(
        states=[f"{'bad' if wrong else 'state'} {number}" for number, wrong in enumerate(is_bad)],
        bad=[number for number, wrong in enumerate(is_bad) if wrong],
        block_steps=model.block_steps,
        start=[model.start[state] for state in order],
        transition=[[model.transition[one][two] for two in order] for one in order],
        means=[model.means[state] for state in order],
        deviations=[model.deviations[state] for state in order],
    )
