"""Rules that set the weights of a run's sources: ADO, ODM, and the two controls `natural` and `uniform`.

At each look one `set_mixture` is proposed. What the rules go by is measured on the ranks: the loss and the number of
drawn samples of each source, every ten steps, of which those at log intervals are charted. Priors are the weights that
sources had first. A source with too few batches (200) keeps the floor under ADO and ODM: nothing is known of it yet.
A rule that begins in the middle of a run has ADO's averages begin at the present shares; fits are of all measurements.
"""

from collections.abc import Mapping
from dataclasses import replace

from control_plane.agent.grants import Proposal
from control_plane.agent.mixing import Mix, SourceSeen
from control_plane.agent.policy import Observation
from control_plane.agent.rules import mixture_formulas as formulas
from control_plane.agent.rules.mixture_formulas import AdoState, OdmState
from control_plane.agent.rules.power_law import PowerLaw, fit
from control_plane.agent.rules.rule import Cursor, keep, mean
from control_plane.core.model.intents.agent import MIXTURE_EVERY_STEPS, MixingSettings

ADO, ODM, NATURAL, UNIFORM = "ado", "odm", "natural", "uniform"

SAME_SHARE = 1e-3
"""Shares that differ by less are not worth a command."""

Sources = Mapping[str, SourceSeen]


class MixtureRule:
    """Rule that sets the weights of sources, by one of the four formulas.

    mixing: floor, least batches, and steps between fits. every_steps: between two looks, so that ADO knows how many
        looks the steps before its first one stand for.
    """

    needs: tuple[str, ...] = ()

    def __init__(self, name: str, mixing: MixingSettings | None = None, every_steps: int = MIXTURE_EVERY_STEPS) -> None:
        self.name, self._every_steps = name, every_steps
        self._mixing = mixing if mixing is not None else MixingSettings()
        self._cursor = Cursor()
        self._begin()

    def _begin(self) -> None:
        self._ado: AdoState | None = None
        self._odm: OdmState | None = None
        self._curves: dict[str, PowerLaw] = {}
        self._fitted_at: int | None = None
        self._counted: dict[str, float] = {}

    def look(self, seen: Observation) -> Proposal:
        """Propose the weights that follow from what was measured since the last look."""
        if self._cursor.is_anew(seen):
            self._begin()
        since, self._cursor.step = self._cursor.step, seen.step
        sources = {name: source for name, source in seen.mixture.items() if source.share > 0}
        if len(sources) < 2:
            return keep(f"{len(sources)} of the run's sources {'is' if len(sources) == 1 else 'are'} drawn from")
        counts = {name: source.newest_count for name, source in sources.items()}
        drawn = {name: max(0.0, count - self._counted.get(name, count)) for name, count in counts.items()}
        self._counted = counts
        shares, reason = self._shares(sources, seen.step, since, drawn)
        if shares is None:
            return keep(reason)
        if all(abs(share - sources[name].share) < SAME_SHARE for name, share in shares.items()):
            return keep(f"{reason}; the shares are what they should be")
        # A source that has no record yet will begin at the floor.
        waiting = [name for name, source in seen.mixture.items() if source.weight > 0 and not source.records]
        wanted = shares | (dict.fromkeys(waiting, self._mixing.floor) if self.name in (ADO, ODM) else {})
        return Mix({name: _weight(share, seen.mixture[name]) for name, share in wanted.items()}, reason)

    def _shares(
        self, sources: Sources, step: int, since: int, drawn: Mapping[str, float]
    ) -> tuple[dict[str, float] | None, str]:
        if self.name == UNIFORM:
            return formulas.uniform(sources), "equal shares"
        priors = formulas.normalised({name: source.prior for name, source in sources.items()})
        if self.name == NATURAL:
            return priors, "the shares that the sources had first"
        least = self._mixing.least_batches
        young = [name for name, source in sources.items() if source.batches < least]
        if not any(source.losses for source in sources.values()):
            return None, "no loss by source was measured yet"
        if len(young) == len(sources):
            most = max(source.batches for source in sources.values())
            return None, f"no source has {least} batches yet; the most are {most}"
        if self.name == ODM:
            return self._by_odm(sources, since, young)
        return self._by_ado(sources, step, priors, drawn, young)

    def _by_odm(self, sources: Sources, since: int, young: list[str]) -> tuple[dict[str, float], str]:
        grown = [name for name in sources if name not in young]
        state = self._odm or formulas.odm_begin(grown)
        usual = mean(state.rewards.values()) if state.rewards else 0.0
        state = replace(state, rewards={name: state.rewards.get(name, usual) for name in grown})
        new = {name: mean(loss for step, loss in sources[name].losses if step > since) for name in grown}
        losses = {name: loss for name, loss in new.items() if loss == loss}
        self._odm, shares = formulas.odm(state, losses, {name: sources[name].share for name in sources})
        reason = "loss " + ", ".join(f"{name} {loss:.3g}" for name, loss in losses.items())
        return formulas.with_floor({name: shares.get(name, 0.0) for name in sources}, young, self._mixing.floor), reason

    def _by_ado(
        self, sources: Sources, step: int, priors: Mapping[str, float], drawn: Mapping[str, float], young: list[str]
    ) -> tuple[dict[str, float] | None, str]:
        grown = [name for name in sources if name not in young]
        if (
            self._fitted_at is None
            or step - self._fitted_at >= self._mixing.fit_every_steps
            or not (self._curves.keys() >= set(grown))
        ):
            self._fitted_at = step
            found = {name: fit(sources[name].learning_curve()) for name in grown}
            self._curves |= {name: curve for name, curve in found.items() if curve is not None}
        counts = {name: sources[name].newest_count for name in grown}
        slopes = {name: self._curves[name].slope(max(1.0, counts[name])) for name in grown if name in self._curves}
        if not any(slopes.values()):
            return None, "no learning curve falls, or there are too few measurements for one"
        now = formulas.normalised({name: source.share for name, source in sources.items()})
        state = self._ado or AdoState(now, now, max(1, step // self._every_steps))
        # Sources come and go: a new one begins at its present share.
        realised = formulas.normalised({name: state.realised.get(name, now[name]) for name in sources})
        average = formulas.normalised({name: state.mean.get(name, now[name]) for name in sources})
        self._ado, shares = formulas.ado(
            AdoState(realised, average, state.updates), priors, slopes, drawn, young, self._mixing.floor
        )
        falls = ", ".join(f"{name} {1000 * slope:.2g}" for name, slope in slopes.items())
        return shares, f"loss falls by, in 1,000 samples: {falls}"


def _weight(share: float, source: SourceSeen) -> float:
    """Return the weight that gives a share: shares are weights to the power of 1 / temperature."""
    return float(f"{share ** (1 / source.exponent):.6g}")
