"""Learning of the linear policy: advantage-weighted regression on episodes of short runs, rounds after rounds.

    python -m benchmarks.studies.learning RESULTS.jsonl     writes the weights that are shipped with the rule

Each round trains runs from random starts, on seeds that no study uses, with actions drawn from the policy so far (the
first: by equal chance). The effect of an episode is how far its run ended below what its start lets expect, a quadratic
regression on the start. A logistic regression then learns the actions, each weighted by the exponential of its effect
(Peng et al., arXiv 1910.00177). Credit is not assigned within a run: all of its actions share the effect.
"""

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.catalogue import Say
from benchmarks.studies.outcome import loss_of
from benchmarks.studies.plan import FIRST_LEARNING_SEED, Trial
from benchmarks.studies.results import Row
from benchmarks.studies.runs import run
from control_plane.agent import rules
from control_plane.agent.rules.learned import ACTIONS, FEATURES, weights_of

ROUNDS, RUNS_A_ROUND = 2, 24
RATE, SPREAD = 6e-3, 100.0
"""Starts are drawn log-uniformly around this rate, which the sweep has found, up to this factor below and above."""

TEMPERATURE = 0.5
"""Of the weights, in standard deviations of the effect."""

RIDGE, STEPS, STEP_SIZE = 1e-2, 3000, 0.3

Array = npt.NDArray[np.float64]


def learn(results: Path, say: Say, rounds: int = ROUNDS, runs: int = RUNS_A_ROUND) -> dict[str, Any]:
    """Return the file of weights, as JSON. Goes on where it was interrupted."""
    weights: Array | None = None
    rows: list[Row] = []
    for number in range(rounds):
        rows += run(
            [trial_of(number, index, runs, weights) for index in range(runs)], results, say, f"round {number + 1}"
        )
        weights = fit(*examples(rows))
        say(f"round {number + 1}: mean loss {np.mean([loss_of(row) for row in rows[-runs:]]):.4f}")
    assert weights is not None
    about = (
        f"advantage-weighted regression on {len(rows)} runs in {rounds} rounds, seeds from {FIRST_LEARNING_SEED}, "
        f"starts within a factor of {SPREAD:g} of {RATE:g}; see benchmarks/studies/learning.py"
    )
    rounded = [[round(float(weight), 4) for weight in row] for row in weights]
    return {
        "about": about,
        "features": list(FEATURES),
        "actions": [str(action) for action in ACTIONS],
        "weights": rounded,
    }


def trial_of(number: int, index: int, runs: int, weights: Array | None) -> Trial:
    """Return a run of a round, from a start drawn by its seed."""
    seed = FIRST_LEARNING_SEED + number * runs + index
    rate = RATE * SPREAD ** random.Random(seed).uniform(-1, 1)
    options: Mapping[str, Any] = (
        {} if weights is None else {"weights": [[round(float(w), 4) for w in row] for row in weights]}
    )
    return Trial("learned", float(f"{rate:.4g}"), seed, options, explores=True)


def examples(rows: Sequence[Row]) -> tuple[Array, npt.NDArray[np.int64], Array]:
    """Return features (n, features), actions (n,) and weights (n,) of all episodes."""
    starts = np.array([math.log(row["trial"]["rate"] / RATE) for row in rows])
    losses = np.array([loss_of(row) for row in rows])
    basis = np.stack([np.ones_like(starts), starts, starts**2, np.abs(starts)], axis=1)
    effect = basis @ np.linalg.lstsq(basis, losses, rcond=None)[0] - losses
    scale = float(effect.std()) or 1.0
    features, actions, weights = [], [], []
    for row, each in zip(rows, effect, strict=True):
        for episode in row["episodes"]:
            features.append(episode["features"])
            actions.append([str(action) for action in ACTIONS].index(episode["proposal"]))
            weights.append(math.exp(min(each / scale / TEMPERATURE, 5.0)))
    return np.array(features), np.array(actions), np.array(weights)


def fit(features: Array, actions: npt.NDArray[np.int64], weights: Array) -> Array:
    """Return the weights (actions, features) of a weighted logistic regression, in small steps."""
    wanted = np.eye(len(ACTIONS))[actions]
    share = weights / weights.sum()
    fitted = np.zeros((len(ACTIONS), features.shape[1]))
    for _ in range(STEPS):
        sums = features @ fitted.T
        odds = np.exp(sums - sums.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        fitted -= STEP_SIZE * (((odds - wanted) * share[:, None]).T @ features + RIDGE * fitted)
    return fitted


def main(results: Path) -> None:
    """Learn, and write the weights beside the rule."""
    learned = learn(results, lambda line: print(line, file=sys.stderr, flush=True))
    weights_of(learned)
    path = Path(rules.__file__).parent / "learned.json"
    path.write_text(json.dumps(learned, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
