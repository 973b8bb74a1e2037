"""The rules by name, and the one place that reads the learned policy's weights from its file."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files

from control_plane.agent.rules.greedy import PUBLISHED, SHIPPED, GreedyRule
from control_plane.agent.rules.guarded import GuardedRule
from control_plane.agent.rules.learned import LearnedRule, Weights, weights_of
from control_plane.agent.rules.mixture import MixtureRule
from control_plane.agent.rules.plateau import PlateauRule
from control_plane.agent.rules.probing import ProbingRule
from control_plane.agent.rules.rule import Rule
from control_plane.agent.rules.simple import NothingRule, RandomRule
from control_plane.agent.rules.zclip import ZClipRule
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.agent import MIXTURE_POLICIES

DEFAULT = "guarded"
"""The rule that `rule` and `auto` mean."""

WEIGHTS = "learned.json"


def shipped_weights() -> Weights:
    """Return the weights that are shipped with the learned policy."""
    text = files("control_plane.agent.rules").joinpath(WEIGHTS).read_text(encoding="utf-8")
    return weights_of(json.loads(text))


RULES: Mapping[str, Callable[[], Rule]] = {
    "guarded": GuardedRule,
    "probing": ProbingRule,
    "greedy-shipped": lambda: GreedyRule("greedy-shipped", SHIPPED, "evals"),
    "greedy-published": lambda: GreedyRule("greedy-published", PUBLISHED, "losses"),
    "plateau": PlateauRule,
    "zclip": ZClipRule,
    "learned": lambda: LearnedRule(shipped_weights()),
    "random": RandomRule,
    "nothing": NothingRule,
    **{name: partial(MixtureRule, name) for name in MIXTURE_POLICIES},
}


def make_rule(name: str) -> Rule:
    """Return a new rule. Raises `Invalid` for an unknown name."""
    if name not in RULES:
        raise Invalid(f"there is no rule {name!r}; there are {', '.join(RULES)}")
    return RULES[name]()
