"""Choice of the proposer: the model of the environment, or a rule by its name."""

from collections.abc import Mapping

from control_plane.agent.model import Budget, ChatModel, endpoint
from control_plane.agent.options import AgentOptions
from control_plane.agent.rules.catalogue import DEFAULT, RULES, make_rule
from control_plane.agent.rules.guarded import GuardedRule
from control_plane.agent.rules.mixture import MixtureRule
from control_plane.agent.rules.probing import ProbingOptions, ProbingRule
from control_plane.agent.rules.rule import Rule
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents.agent import MIXTURE_POLICIES, POLICIES

__all__ = ["MODEL_POLICIES", "POLICIES", "advice", "choose_model", "choose_rule"]

MODEL_POLICIES = ("auto", "model")


def choose_model(options: AgentOptions, environ: Mapping[str, str], budget: Budget | None = None) -> ChatModel | None:
    """Return the model to ask, or None for a rule. Raises `Invalid` if a model is required and no key is set."""
    if options.policy not in MODEL_POLICIES:
        return None
    where = endpoint(environ, options.model_timeout_s)
    if where is None and options.policy == "model":
        raise Invalid("policy is 'model', but OPENAI_API_KEY is not set; set it, or use policy 'rule'")
    return ChatModel(where, budget) if where else None


def choose_rule(options: AgentOptions) -> Rule:
    """Return the rule that proposes without a model.

    Raises `Invalid` for an unknown name, and for a rule that may not change what it works by.
    """
    if options.policy not in POLICIES:
        raise Invalid(f"policy is {options.policy!r}; allowed are {', '.join(POLICIES)}")
    if options.policy in MIXTURE_POLICIES:
        return MixtureRule(options.policy, options.mixing, options.every_steps)
    rule = make_rule(options.policy) if options.policy in RULES else GuardedRule(options.patience)
    if rule.name == DEFAULT:
        return GuardedRule(options.patience)
    granted = {*options.grants.knobs, *((LEARNING_RATE,) if options.factor is not None else ())}
    if missing := sorted(set(rule.needs) - granted):
        raise Invalid(
            f"the rule {rule.name!r} changes {' and '.join(missing)} by factors of its own: give grants with "
            f"'knobs: {{{missing[0]}: {{max_factor: 1000}}}}'"
        )
    return rule


def advice(options: AgentOptions, step: int) -> str | None:
    """Return what a person should know before this rule steers a run that is at `step`, or None."""
    if options.policy in MIXTURE_POLICIES:
        return (
            f"policy {options.policy}: it sets the weights of the run's sources, which the run's limit mixture/* has "
            "to allow the role agent; ado and odm leave a source with fewer than "
            f"{options.mixing.least_batches} batches at the floor"
        )
    if options.policy != ProbingRule.name:
        return None
    grant = options.grants.knobs.get(LEARNING_RATE)
    most = grant.max_factor if grant else options.factor or 2.0
    told = []
    if most < ProbingOptions().drop:
        told.append(
            f"it begins with a factor of up to {ProbingOptions().drop:g}, and {most:g} is allowed: give "
            "`--max-factor 1000` (`max_factor` in a config) in the action space factors, or its search is refused"
        )
    if step > 0:
        told.append(
            f"it searches from step 0, and the run is at step {step}: start it with the run, in the config's section "
            "`agent`; late it only holds the rate and lowers it"
        )
    return f"policy {options.policy}: {'; '.join(told)}" if told else None
