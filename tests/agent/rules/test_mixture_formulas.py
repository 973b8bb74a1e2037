"""Formulas of automatic mixtures against values computed by hand, and the fit of learning curves that are known."""

import math
import random

import pytest

from control_plane.agent.mixing import SourceSeen
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.agent.rules import mixture_formulas as formulas
from control_plane.agent.rules.mixture import MixtureRule
from control_plane.agent.rules.mixture_formulas import FLOOR, AdoState
from control_plane.agent.rules.power_law import PowerLaw, fit
from control_plane.core.model.intents.agent import MixingSettings


def test_odm_by_hand() -> None:
    even = {"a": 0.5, "b": 0.5}
    state, shares = formulas.odm(formulas.odm_begin(["a", "b"]), {"a": 4.0, "b": 2.0}, even)
    # R = (4 / 10) / 0.5, (2 / 10) / 0.5; eps = min(1/2, sqrt(ln 2 / 2)) = 1/2, all of it exploration.
    assert state.rewards == pytest.approx({"a": 0.8, "b": 0.4})
    assert (state.eps, state.updates) == (0.5, 1)
    assert shares == pytest.approx(even)
    state, shares = formulas.odm(state, {"a": 4.0, "b": 2.0}, shares)
    # R = 1.6, 0.8; eps = sqrt(ln 2 / 4) = 0.4162773; exp(0.5 R) gives 0.5986877 and 0.4013123.
    assert state.rewards == pytest.approx({"a": 1.6, "b": 0.8})
    assert state.eps == pytest.approx(0.4162773, abs=1e-7)
    assert shares == pytest.approx({"a": 0.5165249, "b": 0.4834751}, abs=1e-6)
    state, _ = formulas.odm(state, {"a": 4.0}, shares)
    assert state.rewards["b"] == pytest.approx(0.8), "a source that was not sampled keeps its reward"
    huge = formulas.OdmState({"a": 1e6, "b": 0.0}, 0.3, 10)
    assert all(math.isfinite(share) for share in formulas.odm(huge, {}, even)[1].values())


def test_ado_by_hand() -> None:
    even = {"a": 0.5, "b": 0.5}
    state, shares = formulas.ado(AdoState(even, even), even, {"a": 4.0, "b": 1.0}, {"a": 75.0, "b": 25.0})
    # h = 0.9 x 0.5 + 0.1 x 0.75 = 0.525 and 0.475; 0.5 sqrt(0.525) x 4 = 1.4491377, 0.5 sqrt(0.475) = 0.3446012.
    assert state.realised == pytest.approx({"a": 0.525, "b": 0.475})
    assert shares == pytest.approx({"a": 0.9 * 0.5 + 0.1 * 0.8078862, "b": 0.9 * 0.5 + 0.1 * 0.1921138}, abs=1e-6)
    assert state.mean == pytest.approx({"a": 0.6539431, "b": 0.3460569}, abs=1e-6)
    assert state.updates == 2
    _, later = formulas.ado(state, even, {"a": 4.0, "b": 1.0}, {"a": 0.0, "b": 0.0})
    assert later["a"] == pytest.approx(0.9 * 0.6539431 + 0.1 * 0.8078862, abs=1e-6)


def test_no_source_is_below_the_floor_and_young_ones_are_at_it() -> None:
    shares = formulas.with_floor({"a": 98.0, "b": 1.5, "c": 0.5, "d": 0.0})
    assert shares["c"] == shares["d"] == FLOOR
    assert shares["a"] / shares["b"] == pytest.approx(98 / 1.5)
    assert sum(shares.values()) == pytest.approx(1)
    shares = formulas.with_floor({"a": 1.0, "b": 3.0, "new": 50.0}, ["new"])
    assert shares == pytest.approx({"a": 0.2475, "b": 0.7425, "new": 0.01})
    assert formulas.with_floor({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    many = formulas.with_floor({str(n): float(n == 0) for n in range(64)})
    assert many["0"] == pytest.approx(0.37)
    assert formulas.uniform("ab") == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(("floor", "scale", "alpha"), [(2.0, 30.0, 0.4), (1.0, 5.0, 0.2), (0.5, 400.0, 0.9)])
def test_a_known_learning_curve_is_found_under_noise(floor: float, scale: float, alpha: float) -> None:
    noise, curve = random.Random(1), PowerLaw(floor, scale, alpha)
    points = [(float(n), curve.loss(n) * (1 + noise.gauss(0, 0.01))) for n in range(80, 20000, 80)]
    found = fit([*points, (500.0, math.nan), (501.0, math.inf), (0.0, 9.0)])
    assert found is not None
    assert found.alpha == pytest.approx(alpha, rel=0.06)
    assert found.slope(20000) == pytest.approx(alpha * scale * 20000**-alpha / 20000, rel=0.03)


def test_what_does_not_fall_or_is_too_short_has_no_curve() -> None:
    assert fit([(float(n), 2 + 0.001 * n) for n in range(1, 100)]) is None
    assert fit([(float(n), 5.0 / n) for n in range(1, 7)]) is None
    assert fit([]) is None


def source(curve: PowerLaw, per_step: float, steps: int, **about: float) -> SourceSeen:
    """A source as seen after so many steps, of which every tenth was measured."""
    measured = range(10, steps + 1, 10)
    fields = {"weight": 1.0, "share": 0.5, "records": 10**6, "prior": 1.0} | about
    return SourceSeen(
        losses=tuple((step, curve.loss(step * per_step)) for step in measured),
        samples=tuple((step, step * per_step) for step in measured),
        **fields,  # type: ignore[arg-type]
    )


STEEP, FLAT, NOISE = PowerLaw(1.0, 30.0, 0.5), PowerLaw(1.0, 3.0, 0.3), PowerLaw(6.0, 0.0, 0.5)


def looked(rule: MixtureRule, step: int, **sources: SourceSeen) -> dict[str, float] | str:
    """The weights that a rule proposes, or why it keeps."""
    proposal = rule.look(Observation(step=step, total_steps=9999, losses=(), lr=(), mixture=sources))
    if isinstance(proposal, Decision):
        assert proposal.action is AgentAction.KEEP
        return proposal.reason
    return dict(proposal.weights)  # type: ignore[union-attr]


def test_ado_gives_more_to_what_falls_and_odm_to_what_is_high() -> None:
    sources = {"steep": source(STEEP, 4, 600), "noise": source(NOISE, 4, 600)}
    by_ado = looked(MixtureRule("ado"), 600, **sources)
    by_odm, odm = "", MixtureRule("odm")
    for step in range(600, 1000, 50):
        by_odm = looked(odm, step, **{name: source(c, 4, step) for name, c in (("steep", STEEP), ("noise", NOISE))})
    assert isinstance(by_ado, dict)
    assert isinstance(by_odm, dict)
    assert by_ado["steep"] > 0.5 > by_ado["noise"] >= FLOOR
    assert by_odm["noise"] > 0.5 > by_odm["steep"]


def test_a_source_with_fewer_than_200_batches_keeps_the_floor_and_one_without_records_waits_at_it() -> None:
    for name in ("ado", "odm"):
        old = {"steep": source(STEEP, 4, 600), "flat": source(FLAT, 4, 600)}
        young = {"rare": source(STEEP, 0.3, 600), "empty": source(STEEP, 1, 0, share=0.0, records=0, weight=0.5)}
        off = {"off": source(FLAT, 4, 600, share=0.0, weight=0.0)}
        weights = looked(MixtureRule(name), 600, **old, **young, **off)
        assert isinstance(weights, dict)
        assert (weights["rare"], weights["empty"], "off" in weights) == (FLOOR, FLOOR, False)
        assert sum(weights.values()) == pytest.approx(1 + FLOOR, abs=1e-5)
        reason = looked(MixtureRule(name), 190, steep=source(STEEP, 4, 190), flat=source(FLAT, 4, 190))
        assert reason == "no source has 200 batches yet; the most are 190"


def test_floor_least_batches_and_fits_are_settings() -> None:
    mixing = MixingSettings(floor=0.1, least_batches=40, fit_every_steps=100)
    rule = MixtureRule("ado", mixing, every_steps=20)
    sources = {"steep": source(STEEP, 4, 160), "noise": source(NOISE, 4, 160)}
    assert "no source has 200 batches yet" in str(looked(MixtureRule("ado"), 160, **sources))
    first = looked(rule, 160, **sources)
    assert isinstance(first, dict)
    assert rule._ado is not None
    assert rule._ado.updates == 160 // 20 + 1, "looks that the steps before the first one stand for"
    for step in range(180, 2000, 20):
        share = looked(rule, step, **{name: source(c, 4, step) for name, c in (("steep", STEEP), ("noise", NOISE))})
    assert isinstance(share, dict)
    assert 0.1 <= share["noise"] < 0.15, "the floor, averaged with the shares of earlier looks"
    assert rule._fitted_at == 1960


def test_a_fit_that_fails_keeps_the_last_and_fits_come_every_thousand_steps() -> None:
    rule = MixtureRule("ado")
    first = {"steep": source(STEEP, 4, 600), "flat": source(FLAT, 4, 600)}
    looked(rule, 600, **first)
    curves = dict(rule._curves)
    broken = {name: source(PowerLaw(math.nan, 1.0, 0.5), 4, 1500) for name in first}
    looked(rule, 1550, **broken)
    looked(rule, 1650, **broken)
    assert (rule._curves, rule._fitted_at) == (curves, 1650), "they were fitted anew at 1650, and gave nothing"


def test_controls_and_temperature() -> None:
    sources = {"a": source(FLAT, 4, 50, prior=3.0, share=0.5), "b": source(FLAT, 4, 50, prior=1.0, share=0.5)}
    assert looked(MixtureRule("natural"), 50, **sources) == {"a": 0.75, "b": 0.25}
    assert "what they should be" in str(looked(MixtureRule("uniform"), 50, **sources))
    warm = {
        name: source(FLAT, 4, 50, prior=3.0 if name == "a" else 1.0, share=0.5, exponent=0.5) for name in ("a", "b")
    }
    weights = looked(MixtureRule("natural"), 50, **warm)
    assert isinstance(weights, dict)
    assert weights["a"] ** 0.5 / (weights["a"] ** 0.5 + weights["b"] ** 0.5) == pytest.approx(0.75, abs=1e-5)
    assert "0 of the run's sources are" in str(looked(MixtureRule("uniform"), 50))
