"""Formulas of automatic mixtures: shares of the sources from losses, counts and priors. Pure functions.

ADO (Jiang et al., "Adaptive Data Optimization", arXiv 2410.11820): more of what the loss falls by most for a sample.
ODM (Albalak et al., "Efficient Online Data Mixing", arXiv 2312.02406): EXP3, more of what has a high loss.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt

from control_plane.core.model.intents.agent import MixingSettings

FLOOR = MixingSettings().floor
"""Smallest share of a source, unless told another: below it nothing would be learned about the source itself."""

MEMORY = 0.9
"""ADO: share of the past in the moving average of realised shares, and of the mean of all looks in the shares."""

REWARD_SCALE = 10.0
"""ODM: a reward is the loss over this number."""

Shares = Mapping[str, float]


def normalised(values: Shares) -> dict[str, float]:
    """Return the values over their sum; equal shares where the sum is 0."""
    total = sum(values.values())
    return {name: value / total if total > 0 else 1 / len(values) for name, value in values.items()}


def with_floor(values: Shares, at_floor: Collection[str] = (), floor: float = FLOOR) -> dict[str, float]:
    """Return shares in proportion to the values, none below the floor. `at_floor` get exactly the floor.

    More sources than the floor has room for, and nothing but sources at the floor, share equally.
    """
    free, held = [name for name in values if name not in at_floor], list(at_floor)
    while free and floor * len(values) < 1:
        scaled = normalised({name: values[name] for name in free})
        rest = 1 - floor * len(held)
        low = [name for name in free if scaled[name] * rest < floor]
        if not low:
            return {name: scaled[name] * rest if name in scaled else floor for name in values}
        held, free = held + low, [name for name in free if name not in low]
    return {name: 1 / len(values) for name in values}


def uniform(names: Collection[str]) -> dict[str, float]:
    """Return equal shares."""
    return {name: 1 / len(names) for name in names}


@dataclass(frozen=True, slots=True)
class OdmState:
    """State of ODM: `rewards` is R, `eps` the exploration of the last update, `updates` their number t."""

    rewards: Mapping[str, float]
    eps: float
    updates: int = 0


def odm_begin(names: Collection[str]) -> OdmState:
    """Return the state before the first update."""
    return OdmState(dict.fromkeys(names, 0.0), 1 / len(names))


def odm(state: OdmState, losses: Shares, shares: Shares) -> tuple[OdmState, dict[str, float]]:
    """Return the state and the shares after one update.

    Args:
        losses: mean loss of each source that was sampled since the last update.
        shares: by which they were sampled.
    """
    rewards = dict(state.rewards)
    for name, loss in losses.items():
        if name in rewards and shares.get(name, 0.0) > 0:
            rewards[name] += loss / REWARD_SCALE / shares[name]
    count, updates = len(rewards), state.updates + 1
    eps = min(1 / count, sqrt(log(count) / (count * updates)))
    most = max(rewards.values())
    raised = normalised({name: exp(state.eps * (reward - most)) for name, reward in rewards.items()})
    weights = {name: (1 - count * eps) * share + eps for name, share in raised.items()}
    return OdmState(rewards, eps, updates), normalised(weights)


@dataclass(frozen=True, slots=True)
class AdoState:
    """State of ADO: `realised` is h, `mean` is pbar, `updates` is t."""

    realised: Mapping[str, float]
    mean: Mapping[str, float]
    updates: int = 1


def ado(
    state: AdoState,
    priors: Shares,
    slopes: Shares,
    drawn: Shares,
    young: Collection[str] = (),
    floor: float = FLOOR,
) -> tuple[AdoState, dict[str, float]]:
    """Return the state and the shares after one update.

    Args:
        priors: natural shares mu.
        slopes: by how much a source's loss falls with its next sample.
        drawn: samples since the last update; all 0: the realised shares stay.
        young: sources that get the floor, since too little is known of them.
        floor: smallest share.
    """
    realised = dict(state.realised)
    if sum(drawn.values()) > 0:
        now = normalised({name: drawn.get(name, 0.0) for name in realised})
        realised = {name: MEMORY * share + (1 - MEMORY) * now[name] for name, share in realised.items()}
    wanted = {name: priors[name] * sqrt(realised[name]) * slopes.get(name, 0.0) for name in realised}
    rho = with_floor(wanted, young, floor)
    shares = {name: MEMORY * state.mean[name] + (1 - MEMORY) * rho[name] for name in rho}
    part = 1 / (state.updates + 1)
    mean = {name: (1 - part) * state.mean[name] + part * rho[name] for name in rho}
    return AdoState(realised, mean, state.updates + 1), with_floor(shares, young, floor)
