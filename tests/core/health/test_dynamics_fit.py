"""Fitting the model of training dynamics: likelihood rises, planted states come back, bad ones are named."""

import random
from itertools import pairwise

import pytest

from control_plane.compare.dynamics import EarlierRun, _first, fit, log_likelihood
from control_plane.core.health.dynamics import forward
from tests.core.health.series import Healthy

CALM, BAD = (-0.5, 0.0, 0.0), (4.0, 1.0, 1.0)


def planted(seed: int, blocks: int = 60, bad_from: int | None = None) -> EarlierRun:
    """Return a run that is calm, and from a block on bad."""
    chance = random.Random(seed)
    rows = []
    for at in range(blocks):
        middle = BAD if bad_from is not None and at >= bad_from else CALM
        rows.append(tuple(chance.gauss(value, 0.3) for value in middle))
    return EarlierRun(tuple(rows), bad_from)


def test_fit_finds_the_planted_states_and_which_of_them_is_bad() -> None:
    runs = [planted(1), planted(2), planted(3, bad_from=40), planted(4, bad_from=30)]
    model = fit(runs, states=2, iterations=10)
    assert model.bad == [1]
    assert model.states == ["state 0", "bad 1"]
    assert model.means[0] == pytest.approx(CALM, abs=0.15)
    assert model.means[1] == pytest.approx(BAD, abs=0.15)
    assert model.transition[0][0] > 0.95
    probabilities = None
    for row in planted(9, bad_from=50).rows:
        probabilities = forward(model, probabilities, row)
    assert probabilities is not None
    assert probabilities[1] > 0.99


def test_every_iteration_makes_the_runs_likelier() -> None:
    runs = [planted(seed, bad_from=30) for seed in range(3)]
    values = [log_likelihood(_first(runs, 3, 10), runs)]
    values += [log_likelihood(fit(runs, states=3, iterations=count), runs) for count in (1, 3, 6)]
    # The floors of probabilities and deviations may cost a little.
    assert all(after > before - 1e-3 for before, after in pairwise(values))
    assert values[-1] > values[0] + 10


def test_features_of_an_earlier_run_and_the_block_at_which_it_went_wrong() -> None:
    series = list(Healthy(1, 200))
    losses, norms = [now.signs["loss_local"] for now in series], [now.signs["grad_norm"] for now in series]
    run = EarlierRun.of(losses, norms, bad_from_step=151)
    assert len(run.rows) == 200 // 10 - 6, "the first blocks have nothing to be compared with"
    assert run.bad_from == 15 - 6
    assert EarlierRun.of(losses, norms).bad_from is None


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for 4 states"):
        fit([planted(1, blocks=12)])
