"""Rule of a trial: of its arm, with its options."""

import os
from dataclasses import replace
from typing import Any

from benchmarks.studies.plan import GUARD, Trial
from control_plane.agent.grants import Proposal
from control_plane.agent.model import ChatModel, ModelUnavailable, endpoint
from control_plane.agent.policy import Observation
from control_plane.agent.rules.catalogue import make_rule
from control_plane.agent.rules.greedy import PUBLISHED, GreedyRule
from control_plane.agent.rules.learned import ACTIONS, FEATURES, LearnedRule
from control_plane.agent.rules.plateau import PlateauOptions, PlateauRule
from control_plane.agent.rules.probing import ProbingOptions, ProbingRule
from control_plane.agent.rules.rule import Rule, keep
from control_plane.agent.rules.simple import RandomRule
from control_plane.core.model.intents.grants import NO_GRANTS


class ModelRule:
    """A language model in a rule's place, with the published actions only. It may be asked twice at a look."""

    needs: tuple[str, ...] = ()

    def __init__(self, model: ChatModel) -> None:
        self._model, self.name = model, model.name

    def look(self, seen: Observation) -> Proposal:
        """Ask the model; keep if it gives no answer."""
        try:
            return self._model.propose(seen, GUARD, NO_GRANTS)
        except ModelUnavailable as error:
            return keep(error.reason)


def rule_of(trial: Trial) -> Rule | None:
    """Return the rule of a trial, or None."""
    options: dict[str, Any] = dict(trial.options)
    match trial.of.rule:
        case None:
            return None
        case "greedy-published":
            return GreedyRule("greedy-published", replace(PUBLISHED, **options), "losses")
        case "plateau":
            return PlateauRule(PlateauOptions(**options))
        case "probing":
            return ProbingRule(ProbingOptions(**options))
        case "random":
            return RandomRule(trial.seed)
        case "learned" if trial.explores:
            weights = options.pop("weights", None) or ((0.0,) * len(FEATURES),) * len(ACTIONS)
            return LearnedRule(tuple(tuple(map(float, row)) for row in weights), seed=trial.seed)
        case "model":
            where = endpoint(os.environ)
            assert where is not None
            return ModelRule(ChatModel(where))
        case name:
            return make_rule(name)
