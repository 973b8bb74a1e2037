"""GreedyLR and reduce on plateau, against the classes that Transformers and torch install, on random losses."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.optimization import GreedyLR

from control_plane.agent.grants import Scale
from control_plane.agent.policy import Observation
from control_plane.agent.rules.greedy import GreedyOptions, GreedyRule
from control_plane.agent.rules.plateau import PlateauOptions, PlateauRule
from control_plane.agent.rules.rule import Rule

POINTS = 400


def losses(seed: int) -> list[float]:
    """Losses with falls, plateaus, rises and noise, and now and then one that is not finite."""
    chance, level, out = random.Random(seed), 4.0, list[float]()
    while len(out) < POINTS:
        slope, noise = chance.choice([-0.02, -0.005, 0.0, 0.0, 0.01]), chance.choice([0.0, 0.01, 0.1])
        for _ in range(chance.randrange(5, 60)):
            level = max(0.1, level + slope)
            out.append(level + chance.gauss(0, noise))
    if seed % 4 == 3:
        out[POINTS // 2] = chance.choice([math.nan, math.inf])
    return out[:POINTS]


def options(seed: int) -> GreedyOptions:
    chance = random.Random(f"options {seed}")
    return GreedyOptions(
        factor=chance.choice([0.95, 0.8, 0.5]),
        patience=chance.choice([0, 1, 3, 10]),
        threshold=chance.choice([1e-6, 1e-3]),
        relative=chance.random() < 0.5,
        cooldown=chance.choice([0, 0, 3]),
        warmup=chance.choice([0, 0, 4]),
        min_lr=chance.choice([1e-3, 1e-6, 0.02]),
        max_lr=chance.choice([1.0, 0.08]),
        smooth=chance.random() < 0.5,
        window_size=chance.choice([5, 50]),
        reset_start=chance.choice([500, 2]),
    )


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def installed(make: Callable[[torch.optim.Optimizer], Any], series: list[float], lr: float) -> list[float]:
    """Learning rates of an installed scheduler, one after each loss."""
    sgd = optimizer(lr)
    scheduler, rates = make(sgd), list[float]()
    for loss in series:
        scheduler.step(loss)
        rates.append(sgd.param_groups[0]["lr"])
    return rates


def steered(rule: Rule, series: list[float], lr: float, source: str) -> list[float]:
    """Learning rates under our rule, whose every proposal is carried out."""
    rates, points = list[float](), list[tuple[int, float]]()
    for step, loss in enumerate(series, 1):
        points.append((step, loss))
        fields: dict[str, Any] = {"losses": (), source: tuple(points[-20:])}
        proposal = rule.look(Observation(step=step, total_steps=POINTS, lr=(lr,), generation=1, **fields))
        if isinstance(proposal, Scale):
            lr *= proposal.factor
        rates.append(lr)
    return rates


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("source", ["losses", "evals"])
def test_greedy_lr_moves_the_rate_as_the_class_of_transformers(seed: int, source: Any) -> None:
    chosen, lr = options(seed), random.Random(seed).choice([3e-4, 1e-2, 0.05])

    def make(sgd: torch.optim.Optimizer) -> GreedyLR:
        named = {name: getattr(chosen, name) for name in GreedyOptions.__slots__ if name != "relative"}
        return GreedyLR(sgd, threshold_mode="rel" if chosen.relative else "abs", **named)

    ours = steered(GreedyRule("greedy", chosen, source), losses(seed), lr, source)
    assert ours == pytest.approx(installed(make, losses(seed), lr), rel=1e-9)


def test_random_series_move_greedy_lr_up_and_down_and_back_to_its_start() -> None:
    """Guard the test above: series that move nothing would make everything equal."""
    moved = [steered(GreedyRule("greedy", options(seed), "losses"), losses(seed), 0.05, "losses") for seed in range(40)]
    assert sum(max(rates) > 0.051 for rates in moved) > 5
    assert sum(min(rates) < 0.049 for rates in moved) > 20
    back = steered(
        GreedyRule("greedy", GreedyOptions(patience=0, factor=0.5, reset_start=2), "losses"),
        [1.0] * 20,
        0.004,
        "losses",
    )
    assert 0.001 in back[:8]
    assert back.count(0.004) > 2


@pytest.mark.parametrize("seed", range(40))
def test_plateau_moves_the_rate_as_the_class_of_torch(seed: int) -> None:
    chance = random.Random(seed)
    chosen = PlateauOptions(
        factor=chance.choice([0.1, 0.5]),
        patience=chance.choice([0, 2, 10]),
        threshold=chance.choice([1e-4, 1e-2]),
        cooldown=chance.choice([0, 5]),
        min_lr=chance.choice([0.0, 1e-3]),
    )

    def make(sgd: torch.optim.Optimizer) -> Any:
        named = {name: getattr(chosen, name) for name in PlateauOptions.__slots__}
        return torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, **named)

    ours = steered(PlateauRule(chosen), losses(seed), 0.05, "evals")
    theirs = installed(make, losses(seed), 0.05)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert min(theirs) < 0.05
