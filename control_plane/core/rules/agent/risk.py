"""Risk of a proposed command, from the intent, the agent's grants and the run's live values alone.

The control server asks this, not the agent: whatever a model is talked into, what is of high risk waits for a person.
"""

from typing import Literal

from control_plane.core.model.commands import Change, Command
from control_plane.core.model.intent_base import LEARNING_RATE, BaseIntent
from control_plane.core.model.intents import Evaluate, SaveCheckpoint, SetKnobs, SetLearningRate, SetMixture
from control_plane.core.model.intents.agent import MIXTURE_POLICIES, AgentSettings
from control_plane.core.model.knobs import is_number
from control_plane.core.model.limits import AGENT
from control_plane.core.model.records import Readback
from control_plane.core.model.state import RunState

Risk = Literal["low", "high"]


def acts_alone(state: RunState, command: Command, intent: BaseIntent) -> bool:
    """Return whether a proposal is made at once: by the agent's mode, the sender's role and the intent's risk."""
    settings = state.agent.settings
    if settings is None or settings.mode == "suggest" or command.role != AGENT:
        return False
    if not all(part.allowed_for_agents for part in intent.parts()):
        return False
    return settings.mode == "auto" or risk_of(intent, settings, state.knobs) == "low"


def risk_of(intent: BaseIntent, settings: AgentSettings, knobs: Readback) -> Risk:
    """Return the risk of an intent.

    Low: an evaluation, a save; a change of the learning rate by at most `max_factor`, in either direction, to a value
    within the settings' bounds; a change of granted knobs, each within its grant; weights of sources, by a policy that
    sets nothing else. Everything else is high, and so is a change whose result is not known here.

    Args:
        knobs: the run's live values, as the ranks last read them back.
    """
    match intent:
        case Evaluate() | SaveCheckpoint():
            return "low"
        case SetLearningRate():
            live = _numbers(knobs.get(LEARNING_RATE))
            grant = settings.grants.knobs.get(LEARNING_RATE)
            most = min(settings.max_factor, grant.max_factor) if grant else settings.max_factor
            least = max(settings.min_lr, grant.min or 0.0) if grant else settings.min_lr
            highest = min(settings.max_lr, grant.max) if grant and grant.max is not None else settings.max_lr
            return _of_change(intent.value, intent.factor, live, most, least, highest)
        case SetMixture():
            return "low" if settings.policy in MIXTURE_POLICIES else "high"
        case SetKnobs():
            return "low" if all(_is_granted(change, settings, knobs) for change in intent.changes) else "high"
    return "high"


def _is_granted(change: Change, settings: AgentSettings, knobs: Readback) -> bool:
    grant = settings.grants.knobs.get(change.knob)
    if grant is None or change.knob == LEARNING_RATE:
        return False
    if isinstance(change.value, bool):
        return True
    values = change.value if isinstance(change.value, tuple) else (change.value,)
    live = _numbers(knobs.get(change.knob))
    of_each = [_of_change(value, change.factor, live, grant.max_factor, grant.min, grant.max) for value in values]
    return all(risk == "low" for risk in of_each)


def _of_change(
    value: float | None,
    factor: float | None,
    live: list[float],
    most: float,
    least: float | None,
    highest: float | None,
) -> Risk:
    """Return the risk of setting or multiplying these live numbers: low if each result is known and within bounds."""
    if not live:
        return "high"
    for number in live:
        becomes = value if value is not None else number * (factor or 1.0)
        by = factor if factor is not None else (becomes / number if number else None)
        if by is None and becomes != number:
            return "high"
        if by is not None and not 1 / most <= by <= most:
            return "high"
        # A value that is out of bounds already may come nearer to them.
        if least is not None and becomes < least and becomes < number:
            return "high"
        if highest is not None and becomes > highest and becomes > number:
            return "high"
    return "low"


def _numbers(value: object) -> list[float]:
    """Return the numbers of a live value; none if one of them is missing."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [float(each) for each in values] if values and all(is_number(each) for each in values) else []  # type: ignore[arg-type]
