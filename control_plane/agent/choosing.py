"""Choice of the proposer: the model of the environment, or a rule by its name."""

from collections.abc import Mapping
from typing import Protocol

from control_plane.agent import greedy_lr
from control_plane.agent.grants import Proposal
from control_plane.agent.model import Budget, ChatModel, endpoint
from control_plane.agent.options import AgentOptions
from control_plane.agent.policy import Decision, Observation
from control_plane.core.model.errors import Invalid

RULE = "GreedyLR"
"""Name of the guarded rule in reasons: after what it was built."""

MODEL_POLICIES = ("auto", "model")
GUARDED = ("auto", "model", "rule", "guarded")


class RuleLike(Protocol):
    """Rule of an autopilot: proposes from an observation. Its state begins anew in a new generation."""

    name: str

    def look(self, seen: Observation) -> Proposal:
        """Return a proposal; `keep` if there is nothing to change."""
        ...


class GuardedRule:
    """The guarded rule as an object: its memory, and `look`."""

    name = RULE

    def __init__(self, patience: greedy_lr.Patience = greedy_lr.Patience()) -> None:
        self._patience, self._memory = patience, greedy_lr.Memory()

    def look(self, seen: Observation) -> Decision:
        """Update the memory, and return a decision."""
        self._memory, decision = greedy_lr.look(self._memory, seen, self._patience)
        return decision


def choose_model(options: AgentOptions, environ: Mapping[str, str], budget: Budget | None = None) -> ChatModel | None:
    """Return the model to ask, or None for a rule. Raises `Invalid` if a model is required and no key is set."""
    if options.policy not in MODEL_POLICIES:
        return None
    where = endpoint(environ, options.model_timeout_s)
    if where is None and options.policy == "model":
        raise Invalid("policy is 'model', but OPENAI_API_KEY is not set; set it, or use policy 'rule'")
    return ChatModel(where, budget) if where else None


def choose_rule(options: AgentOptions) -> RuleLike:
    """Return the rule that proposes without a model. Raises `Invalid` for an unknown name."""
    if options.policy in GUARDED:
        return GuardedRule(options.patience)
    raise Invalid(f"policy is {options.policy!r}; allowed are auto, model, rule and guarded")
