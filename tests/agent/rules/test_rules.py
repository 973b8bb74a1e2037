"""The rules share one interface: plain state, a new start with each generation, and proposals that the guard checks."""

import json
import math
import pickle
from typing import Any

import pytest

from control_plane.agent.choosing import choose_rule
from control_plane.agent.grants import Scale, SetTo, decide
from control_plane.agent.loop import run_agent
from control_plane.agent.options import AgentOptions
from control_plane.agent.policy import AgentAction, AgentBounds, Decision, KnobSeen, Observation
from control_plane.agent.rules.catalogue import RULES, make_rule, shipped_weights
from control_plane.agent.rules.learned import ACTIONS, FEATURES, LearnedRule, weights_of
from control_plane.agent.rules.probing import ProbingRule
from control_plane.agent.rules.simple import RandomRule
from control_plane.agent.rules.zclip import CLIPPING, ZClipRule
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.grants import Grants, KnobGrant
from control_plane.core.model.knobs import KnobSpec
from tests.agent.simulated import NoisyModel, SimulatedRun, observed

GRANTED = Grants(knobs={"lr": KnobGrant(max_factor=1000, cool_down_steps=0), CLIPPING: KnobGrant(max_factor=100)})
BOUNDS = AgentBounds(min_lr=1e-6, max_lr=1.0, max_drop=1e6, cooldown_steps=0)


def looked(rule: Any, model: NoisyModel, lr: float, steps: int = 300, every: int = 5) -> tuple[list[str], float]:
    """Steer a model that exists in numbers by a rule, through the guard: its proposals, and the last rate."""
    proposals, losses, norms = list[str](), list[tuple[int, float]](), list[tuple[int, float]]()
    spec, clipping = KnobSpec(CLIPPING, least=0.0), 1.0
    for step in range(1, steps + 1):
        losses.append((step, model.step(lr)))
        norms.append((step, 1.0 + (step % 7) / 10))
        if step % every:
            continue
        seen = Observation(
            step=step, total_steps=steps, losses=tuple(losses[-200:]), lr=(lr,), evals=tuple(losses[-20::20]),
            grad_norms=tuple(norms[-50:]), generation=1,
            knobs={"lr": KnobSeen(KnobSpec("lr", per_group=True), [lr]), CLIPPING: KnobSeen(spec, clipping)},
        )  # fmt: skip
        proposal = rule.look(seen)
        proposals.append(proposal.what)
        intent: Any = decide(proposal, seen, seen, BOUNDS, GRANTED).intent
        if intent is not None and intent.kind == "set_learning_rate":
            lr = intent.value if intent.value is not None else lr * intent.factor
        elif intent is not None:
            clipping = intent.changes[0].value
    return proposals, lr


@pytest.mark.parametrize("name", RULES)
def test_rule_is_plain_and_repeats_itself(name: str) -> None:
    first, again = make_rule(name), pickle.loads(pickle.dumps(make_rule(name)))
    assert looked(first, NoisyModel(), 5e-3) == looked(again, NoisyModel(), 5e-3)
    pickle.loads(pickle.dumps(first))


@pytest.mark.parametrize("name", RULES)
def test_rule_begins_anew_with_another_generation(name: str) -> None:
    used, new = make_rule(name), make_rule(name)
    looked(used, NoisyModel(), 5e-3, steps=60)
    for step in range(5, 60, 5):
        seen = observed([3.0 - step / 100] * step, lr=4e-4, generation=2)
        assert used.look(seen) == new.look(seen)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e308, 0.0])
def test_rule_survives_any_loss(name: str, loss: float) -> None:
    rule = make_rule(name)
    for step in range(5, 100, 5):
        values = [loss] * step
        points = tuple(enumerate(values, 1))
        rule.look(observed(values, lr=4e-4, evals=points, grad_norms=points))
    rule.look(observed([2.0], lr=0.0))
    rule.look(Observation(step=1, total_steps=0, losses=(), lr=()))


def test_unknown_rule_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(Invalid, match="there is no rule 'magic'; there are guarded, probing"):
        make_rule("magic")


@pytest.mark.parametrize(("name", "needed"), [("probing", "lr"), ("greedy-published", "lr"), ("zclip", CLIPPING)])
def test_rule_whose_knob_is_not_granted_is_refused_at_the_start(name: str, needed: str) -> None:
    with pytest.raises(Invalid, match=f"knobs: {{{needed}: "):
        choose_rule(AgentOptions(policy=name))
    assert choose_rule(AgentOptions(policy=name, grants=GRANTED)).name == name


@pytest.mark.parametrize("name", ["random", "learned", "nothing", "greedy-published", "plateau"])
def test_run_agent_follows_the_rule_of_that_name(name: str) -> None:
    said = list[str]()
    options = AgentOptions(policy=name, grants=GRANTED, every_steps=10)
    run_agent(SimulatedRun(2e-2), "r", options, say=said.append, environ={}, wait=lambda seconds: None)
    assert f"with {name};" in said[0]
    assert sum(line.startswith("step ") for line in said) > 20


def test_random_rule_draws_by_seed_and_takes_all_actions() -> None:
    drawn = [looked(RandomRule(seed), NoisyModel(), 1e-3)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {action.value for action in AgentAction}


def test_nothing_keeps() -> None:
    assert set(looked(make_rule("nothing"), NoisyModel(), 1e-3)[0]) == {"keep"}


# --- Probing ---


@pytest.mark.parametrize("start", [1e-5, 1e-3, 0.1])
def test_probing_finds_a_rate_from_below_whatever_the_start(start: float) -> None:
    proposals, lr = looked(ProbingRule(), NoisyModel(weights=[0.02] * 16), start, steps=600)
    assert proposals[0].startswith("scale lr") or start <= 1e-5
    assert 1e-6 < lr < 2e-2


def test_probing_of_a_run_that_has_begun_leaves_its_rate_alone() -> None:
    rule = ProbingRule()
    looks = [rule.look(observed([3.0] * 5, first_step=step, total_steps=1000)) for step in range(300, 500, 5)]
    assert {look.what for look in looks} == {"keep"}


def test_probing_lowers_the_rate_after_a_divergence_and_not_for_noise() -> None:
    rule = ProbingRule()
    calm = [rule.look(observed([3.0, 3.2] * 5, first_step=step, total_steps=9999)) for step in range(1600, 1700, 10)]
    assert {look.what for look in calm} == {"keep"}
    assert rule.look(observed([4.5] * 10, first_step=1700, total_steps=9999)).what == "scale lr x 0.25"
    assert rule.look(observed([math.nan] * 10, first_step=1710, total_steps=9999)).what == "scale lr x 0.25"


def test_probing_anneals_at_the_end_to_its_share() -> None:
    rule, lr = ProbingRule(), 1e-3
    rule.look(observed([3.0] * 5, lr, first_step=296, total_steps=1000))
    for step in range(300, 1001, 5):
        proposal = rule.look(observed([3.0] * 5, lr, first_step=step - 4, total_steps=1000))
        lr *= proposal.factor if isinstance(proposal, Scale) else 1.0
        assert step > 600 or lr == 1e-3
    assert lr == pytest.approx(1e-4)


# --- ZClip ---


def test_zclip_sets_the_norm_of_the_published_formula_after_an_outlier() -> None:
    rule = ZClipRule()
    knob = {CLIPPING: KnobSeen(KnobSpec(CLIPPING, least=0.0), 1.0)}
    calm = [0.9, 1.1] * 13  # mean 1, deviation 0.1; the warm-up takes 25 of them
    norms = tuple(enumerate(calm, 1))
    rule.look(observed([3.0] * 26, grad_norms=norms, knobs=knob))
    mean, deviation = rule._norms.mean, math.sqrt(rule._norms.variance)
    proposal = rule.look(observed([3.0] * 27, grad_norms=((27, 5.0),), knobs=knob))
    z = (5.0 - mean) / deviation
    assert isinstance(proposal, Decision | SetTo)
    wanted = mean + 2.5 * deviation / (z / 2.5)
    assert abs(wanted - 1.0) < 0.2  # inside the dead band: no command for that
    assert proposal.what == "keep"
    high = {CLIPPING: KnobSeen(KnobSpec(CLIPPING, least=0.0), 4.0)}
    again = ZClipRule()
    again.look(observed([3.0] * 26, grad_norms=norms, knobs=high))
    lowered = again.look(observed([3.0] * 27, grad_norms=((27, 5.0),), knobs=high))
    assert isinstance(lowered, SetTo)
    assert lowered.value == pytest.approx(wanted)


# --- Learned ---


def test_learned_policy_takes_the_largest_sum_and_a_learner_draws() -> None:
    weights = tuple((float(index == 1),) + (0.0,) * (len(FEATURES) - 1) for index in range(3))
    assert LearnedRule(weights).look(observed([3.0] * 5)).what == ACTIONS[1].value
    drawn = {LearnedRule(weights, seed=seed).look(observed([3.0] * 5)).what for seed in range(30)}
    assert drawn == {"double", "halve", "keep"}


def test_weights_of_another_version_are_refused() -> None:
    good = {"features": list(FEATURES), "actions": list(ACTIONS), "weights": [[0.0] * len(FEATURES)] * 3}
    assert len(weights_of(json.loads(json.dumps(good)))) == 3
    for wrong in ({}, [], good | {"features": ["one"]}, good | {"weights": [[0.0]] * 3}, good | {"weights": "x"}):
        with pytest.raises(Invalid):
            weights_of(wrong)
    assert len(shipped_weights()) == len(ACTIONS)
