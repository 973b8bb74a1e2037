"""Second opinion before anything of high risk: the model asked anew as a reviewer, or the guarded rule without a model.

A reviewer sees the numbers and the change in words of ours, never the first answer's reason. Without its agreement a
change of high risk is not made: in mode `auto`, where nobody else would look at it, it is dropped; in the other modes
it is proposed with both opinions, and a person decides. A reviewer that does not answer has not agreed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from control_plane.agent.asking.answers import Opinion
from control_plane.agent.grants import Proposal, Scale
from control_plane.agent.policy import FACTORS, AgentAction, Decision
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import LEARNING_RATE


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Result of a second opinion. `by`: the reviewer; `reason` is untrusted text."""

    agrees: bool
    by: str
    reason: str


def ask_model(review: Callable[[], Opinion], name: str) -> Reviewed:
    """Return the model's second opinion; without an answer it has not agreed."""
    try:
        opinion = review()
    except Unavailable as error:
        return Reviewed(False, name, error.reason)
    return Reviewed(opinion.agree, name, opinion.reason)


def ask_rule(intent: Intent, by_rule: Proposal, name: str) -> Reviewed:
    """Return whether a rule would move the learning rate in the same direction. It has no opinion on anything else."""
    asked, wanted = direction(intent), _direction_of(by_rule)
    if asked is None:
        return Reviewed(False, name, "the rule has no opinion on this")
    reason = getattr(by_rule, "reason", "")
    return Reviewed(asked == wanted, name, f"the rule says {by_rule.what}: {reason}")


def direction(intent: Intent) -> int | None:
    """Return 1 for a command that multiplies the learning rate up, -1 down, None for any other."""
    factor = intent.factor if intent.kind == "set_learning_rate" else None
    return None if factor is None or factor == 1 else (1 if factor > 1 else -1)


def _direction_of(proposal: Proposal) -> int | None:
    factor: float | None = None
    if isinstance(proposal, Decision) and proposal.action is not AgentAction.KEEP:
        factor = FACTORS[proposal.action]
    elif isinstance(proposal, Scale) and proposal.knob == LEARNING_RATE:
        factor = proposal.factor
    return None if factor is None or factor == 1 else (1 if factor > 1 else -1)
