"""Per-knob limits of a run, set by its owner in the config: bounds, rate of change, cool-down, roles.

    limits:
      lr: {min: 1e-6, max: 1e-2, max_factor: 10, cool_down_s: 30, roles: [operator, admin]}
      "*:p": {max: 0.5}
      action/reshuffle: {roles: [operator, admin, agent]}

A name may be a pattern; the first match counts. An action of the script is limited as `action/NAME`; an agent may run
it only if a limit with that prefix names the role `agent`, since its effect is unknown here. Commands are checked on
admission. Only the ranks know which knobs a pattern covers and what a factor yields; they check it at the step
boundary, see `reason_against_change` and `reason_against_value`.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, model_validator

from control_plane.core.model.intent_base import ACTION, BaseIntent, Message
from control_plane.core.model.intents.agent import MIXTURE_POLICIES
from control_plane.core.model.intents.data import WEIGHT
from control_plane.core.model.knobs import numbers

AGENT = "agent"
NEVER: Mapping[str, float] = {}


class Limit(Message):
    """Bounds of one knob's value, factor, frequency of change, and the roles that may change it; None: unbounded."""

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    max_factor: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    cool_down_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    roles: tuple[str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> "Limit":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g}, which is above max {self.max:g}")
        return self


def limit_of(limits: Mapping[str, Limit], knob: str) -> Limit | None:
    """Return the knob's own limit, else that of the first matching pattern, else None."""
    own = limits.get(knob)
    return own or next((limit for pattern, limit in limits.items() if fnmatchcase(knob, pattern)), None)


def reason_against_intent(
    limits: Mapping[str, Limit], intent: BaseIntent, role: str | None, changed_s_ago: Mapping[str, float]
) -> str | None:
    """Return the reason why the limits forbid an intent, or None.

    Args:
        changed_s_ago: seconds since each knob was last changed.
    """
    for knob in intent.knobs():
        if role == AGENT and intent.agents_need_grant and not is_granted(limits, knob):
            how = "run" if knob.startswith(ACTION) else "changed"
            return f"{knob.removeprefix(ACTION)} may not be {how} by an agent: no limit {knob} grants it the role agent"
        # A pattern stands for every knob that it matches, as far as their names are known here.
        covered = (name for name in (*limits, *changed_s_ago) if ":" in knob and fnmatchcase(name, knob))
        for name in (knob, *covered):
            if problem := reason_against_change(limits, name, role, changed_s_ago):
                return problem
        limit = limit_of(limits, knob)
        for value, factor in _requested(intent, knob) if limit is not None else ():
            if limit is not None and (problem := _beyond(knob, limit, value, factor)):
                return problem
    return None


def reason_against_mixing(limits: Mapping[str, Limit], policy: str) -> str | None:
    """Return why an agent of this policy could never change anything under these limits, or None."""
    granted = any(name.startswith(WEIGHT) and AGENT in (limit.roles or ()) for name, limit in limits.items())
    if granted or policy not in MIXTURE_POLICIES:
        return None
    return (
        f"the policy {policy} sets the weights of the run's sources, and no limit of this run lets an agent do that: "
        f"its config needs 'limits: {{{WEIGHT}*: {{roles: [operator, admin, agent]}}}}'"
    )


def reason_against_change(
    limits: Mapping[str, Limit], knob: str, role: str | None, changed_s_ago: Mapping[str, float] = NEVER
) -> str | None:
    """Return the reason why a role may not change a knob now, whatever the value, or None."""
    limit = limit_of(limits, knob)
    if limit is None:
        return None
    if limit.roles is not None and role is not None and role not in limit.roles:
        return f"{knob} may be changed by {', '.join(limit.roles)}, not by {role}"
    ago_s = max(0.0, changed_s_ago[knob]) if knob in changed_s_ago else None
    if limit.cool_down_s is not None and ago_s is not None and ago_s < limit.cool_down_s:
        return (
            f"{knob} was changed {ago_s:.0f} s ago and may be changed again after {limit.cool_down_s:g} s; "
            f"try again in {limit.cool_down_s - ago_s:.0f} s"
        )
    return None


def is_granted(limits: Mapping[str, Limit], knob: str) -> bool:
    """Return whether a limit grants an action, or a source's weight, to agents. A limit of all knobs does not."""
    prefix = knob[: knob.index("/") + 1]
    limit = limit_of({name: each for name, each in limits.items() if name.startswith(prefix)}, knob)
    return limit is not None and AGENT in (limit.roles or ())


def reason_against_value(limits: Mapping[str, Limit], knob: str, before: Any, after: Any) -> str | None:
    """Return the reason why a knob may not change from `before` to `after`, or None.

    Args:
        before: a number, or a list of numbers (one per parameter group).
        after: the same, of equal length.
    """
    limit = limit_of(limits, knob)
    if limit is None:
        return None
    for was, becomes in zip(numbers(before), numbers(after), strict=False):
        if problem := _beyond(knob, limit, becomes, becomes / was if was and becomes != was else None):
            return problem
    return None


def _requested(intent: BaseIntent, knob: str) -> Iterable[tuple[float | None, float | None]]:
    """Yield the requested (value, factor) pairs of a knob; one of the two is None."""
    for value, factor in intent.requested(knob):
        yield from ((number, None) for number in (numbers(value) if value is not None else ()))
        if factor is not None:
            yield None, factor


def _beyond(knob: str, limit: Limit, value: float | None, factor: float | None) -> str | None:
    if value is not None and limit.min is not None and value < limit.min:
        return f"{knob} would be {value:g}; this run allows at least {limit.min:g}"
    if value is not None and limit.max is not None and value > limit.max:
        return f"{knob} would be {value:g}; this run allows at most {limit.max:g}"
    most = limit.max_factor
    if factor is not None and most is not None and not 1 / most <= abs(factor) <= most:
        return f"{knob} would be multiplied by {factor:g}; this run allows at most {most:g} and at least {1 / most:g}"
    return None
