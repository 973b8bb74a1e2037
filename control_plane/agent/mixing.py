"""Observation of a run's sources by an autopilot, and its proposal to set their weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from control_plane.core.health.weak_spots import HELD_OUT_LOSS
from control_plane.core.model.commands import Intent
from control_plane.core.model.data import share_exponent
from control_plane.core.model.intents.data import WEIGHT, SetMixture
from control_plane.core.model.knobs import is_number
from control_plane.core.model.limits import Limit, is_granted, limit_of, reason_against_value

LOSS, SAMPLES = "source_loss/", "source_samples/"
"""Prefixes of the measurements of a source."""

MAX_POINTS = 4000
"""Points that are kept of a source's series; beyond, every other one is dropped, so that the whole run stays known."""

Series = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SourceSeen:
    """Observed source: weight, share and records as the ranks last read them back, and what was measured of it.

    prior: the weight that it had first. exponent: by which weights make shares, 1 / temperature.
    losses, samples: (step, mean loss of its samples) and (step, samples drawn so far), oldest first.
    held_out: (step, mean loss on the records that it holds out), one an evaluation, oldest first.
    """

    weight: float
    share: float
    records: int
    prior: float
    exponent: float = 1.0
    losses: Series = ()
    samples: Series = ()
    held_out: Series = ()

    @property
    def newest_count(self) -> float:
        """Samples drawn so far, as last measured."""
        return self.samples[-1][1] if self.samples else 0.0

    @cached_property
    def batches(self) -> int:
        """Batches so far that held a sample of it; between two measurements, at most as many as steps and samples."""
        total, before = 0.0, (0, 0.0)
        for step, count in self.samples:
            total += max(0.0, min(step - before[0], count - before[1]))
            before = step, count
        return int(total)

    def learning_curve(self) -> list[tuple[float, float]]:
        """Return (samples drawn, loss) of every step at which both were measured."""
        counts = dict(self.samples)
        return [(counts[step], loss) for step, loss in self.losses if step in counts]


class SourceSeries:
    """Measurements of the sources, kept over the whole run. Invariant: the steps of each series rise."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {}

    @staticmethod
    def names(sources: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the measurements of these sources."""
        return tuple(prefix + source for source in sources for prefix in (LOSS, SAMPLES, HELD_OUT_LOSS))

    def take(self, name: str, step: int, value: float) -> None:
        """Take a point; other measurements are ignored. One of an earlier step takes the place of those after it."""
        if not name.startswith((LOSS, SAMPLES, HELD_OUT_LOSS)):
            return
        points = self._points.setdefault(name, [])
        while points and points[-1][0] >= step:
            points.pop()
        points.append((step, value))
        if len(points) > MAX_POINTS:
            del points[1::2]

    def of(self, name: str) -> Series:
        """Return the points of a measurement."""
        return tuple(self._points.get(name, ()))


def sources_seen(
    mixture: Mapping[str, Mapping[str, object]], priors: Mapping[str, float], series: SourceSeries
) -> dict[str, SourceSeen]:
    """Return the run's sources; one whose readback is not in numbers is ignored: it comes from the ranks."""
    numbers = {
        name: {key: float(state[key]) for key in ("weight", "share", "records")}  # type: ignore[arg-type]
        for name, state in mixture.items()
        if all(is_number(state.get(key)) for key in ("weight", "share", "records"))
    }
    exponent = share_exponent(numbers)
    return {
        name: SourceSeen(
            weight=state["weight"],
            share=state["share"],
            records=int(state["records"]),
            prior=priors.get(name, state["weight"]),
            exponent=exponent,
            losses=series.of(LOSS + name),
            samples=series.of(SAMPLES + name),
            held_out=series.of(HELD_OUT_LOSS + name),
        )
        for name, state in numbers.items()
    }


@dataclass(frozen=True, slots=True)
class Mix:
    """Proposal to set the weights of sources."""

    weights: Mapping[str, float]
    reason: str = ""

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return "weights " + ", ".join(f"{name} = {weight:.4g}" for name, weight in self.weights.items())


def granted_sources(limits: Mapping[str, Limit], sources: Iterable[str]) -> dict[str, Limit]:
    """Return the limits of those sources whose weights an agent may set: of each a limit names the role `agent`."""
    granted = [name for name in sources if is_granted(limits, WEIGHT + name)]
    return {name: limit_of(limits, WEIGHT + name) or Limit() for name in granted}


def reason_against_model(
    proposal: Mix, now: Mapping[str, SourceSeen], bounds: Mapping[str, Limit], since_last: int | None, cool_down: int
) -> str | None:
    """Return why a model may not set these weights, or None.

    Args:
        bounds: of the sources that it may set.
        since_last: steps since anybody last set weights, None if nobody has; cool_down: the least.
    """
    if since_last is not None and 0 <= since_last < cool_down:
        return f"cool-down: weights were set {since_last} steps ago; {cool_down} are required"
    for name, weight in proposal.weights.items():
        if name not in bounds or name not in now:
            return "one of these is no source whose weight this agent may set"
        limits = {WEIGHT + name: bounds[name]}
        if reason := reason_against_value(limits, WEIGHT + name, now[name].weight, weight):
            return reason
    whole = {name: source.weight for name, source in now.items()} | dict(proposal.weights)
    if not any(weight > 0 for weight in whole.values()):
        return "no source would be drawn from"
    return "the weights are these already" if all(whole[name] == now[name].weight for name in now) else None


def intent_of(proposal: Mix, seen: Mapping[str, SourceSeen], now: Mapping[str, SourceSeen]) -> Intent | str:
    """Return the command of a proposal, or why it may not be sent.

    Args:
        seen: the sources as the proposer saw them; now: as they are.
    """
    if not proposal.weights:
        return "no weight was proposed"
    for name in proposal.weights:
        if name not in now:
            return f"this run has no source {name!r}"
        if name not in seen or seen[name].weight != now[name].weight:
            return f"the weight of {name} has changed since it was observed"
    try:
        return SetMixture(weights=dict(proposal.weights))
    except ValidationError:
        return "it is not a valid command"
