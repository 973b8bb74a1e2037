"""Grants of the autopilot: further knobs and actions that its operator allows, and the check of proposals on them.

A file (`steer agent RUN --grants FILE`, its form in `core.model.intents.grants`) grants knobs and actions, and nothing
else; the three actions on the learning rate stay as they are. Proposals are typed (`Scale`, `SetTo`, `Run`, and the
`Course` of `course`); `decide` checks them against the grants, the run's knobs and actions, and their live values. The
run's own limits apply as well, as for every operator.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from control_plane.agent import course, mixing, policy
from control_plane.agent.course import Course
from control_plane.agent.mixing import Mix
from control_plane.agent.policy import ActionSeen, AgentBounds, Decision, KnobSeen, Observation, Ruling
from control_plane.config_text import from_yaml
from control_plane.core.model.commands import MAX_LEARNING_RATE
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents import INTENT
from control_plane.core.model.intents.grants import ArgumentGrant, Grants, KnobGrant
from control_plane.core.model.knobs import KIND_LABELS, KnobSpec, finite_numbers, is_number
from control_plane.core.model.values import MAX_SEED, spelled_factor

MAX_FILE_BYTES = 64 * 1024
SLACK = 1e-9
"""Rounding must not stand in the way of a step that is exactly as long as allowed."""

ARGUMENT_TYPES = ("int", "float", "bool")
"""Types of arguments that a model may give. No text: the model's output must not become the script's input."""


def load(path: Path) -> Grants:
    """Read the grants from a YAML file. Raises `Invalid` with the location of the error."""
    try:
        text = path.read_bytes()[: MAX_FILE_BYTES + 1]
        if len(text) > MAX_FILE_BYTES:
            raise Invalid(f"{path} exceeds the limit of {MAX_FILE_BYTES // 1024} KiB")
        return Grants.model_validate(from_yaml(text.decode("utf-8"), str(path)) or {})
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path} is not UTF-8 text; expected YAML with knobs, actions and watch") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise Invalid(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


@dataclass(frozen=True, slots=True)
class Scale:
    """Proposal to multiply a knob by a factor."""

    knob: str
    factor: float
    reason: str = ""

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return f"scale {self.knob} x {spelled_factor(self.factor)}"


@dataclass(frozen=True, slots=True)
class SetTo:
    """Proposal to set a knob to a value."""

    knob: str
    value: Any
    reason: str = ""

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return f"set {self.knob} = {self.value}"


@dataclass(frozen=True, slots=True)
class Run:
    """Proposal to run an action of the script."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return f"run {self.name} {json.dumps(dict(self.arguments))}"


Proposal = Decision | Scale | SetTo | Run | Course | Mix


def decide(proposal: Proposal, seen: Observation, now: Observation, bounds: AgentBounds, grants: Grants) -> Ruling:
    """Check a proposal. `seen`: what the proposer observed; `now`: the run when it answered."""
    if isinstance(proposal, Decision):
        reason = _against_grant(proposal, seen, now, grants.knobs.get(LEARNING_RATE))
        return Ruling(None, f"not sent: {reason}") if reason else policy.decide(proposal, seen, now, bounds)
    reason = policy.gone_on(seen, now, bounds) or policy.too_many(now, bounds)
    if isinstance(proposal, Course):
        reason = reason or course.reason_against(proposal, now, bounds)
        return Ruling(None, f"not sent: {reason}") if reason else Ruling(proposal.intent, proposal.what)
    if isinstance(proposal, Mix):
        return Ruling(None, f"not sent: {reason}") if reason else _mixed(proposal, seen, now, bounds)
    if reason is None:
        about = _about_action if isinstance(proposal, Run) else _about_knob
        reason = about(proposal, seen, now, bounds, grants)  # type: ignore[arg-type]
    if reason is not None:
        return Ruling(None, f"not sent: {reason}")
    try:
        return Ruling(INTENT.validate_python(_intent(proposal)), proposal.what)
    except ValidationError:
        return Ruling(None, "not sent: it is not a valid command")


def _mixed(proposal: Mix, seen: Observation, now: Observation, bounds: AgentBounds) -> Ruling:
    if now.is_mixing:
        return Ruling(None, "not sent: an earlier change of the weights is still pending")
    if seen.weight_limits or now.weight_limits:  # a model proposes; a rule goes by the owner's limits alone
        since = None if now.mixed_at is None else now.step - now.mixed_at
        reason = mixing.reason_against_model(proposal, now.mixture, now.weight_limits, since, bounds.cooldown_steps)
        if reason is not None:
            return Ruling(None, f"not sent: {reason}")
    intent = mixing.intent_of(proposal, seen.mixture, now.mixture)
    return Ruling(None, f"not sent: {intent}") if isinstance(intent, str) else Ruling(intent, proposal.what)


def _intent(proposal: Scale | SetTo | Run) -> dict[str, Any]:
    if isinstance(proposal, Run):
        return {"kind": "run_action", "name": proposal.name, "arguments": dict(proposal.arguments)}
    value = proposal.value if isinstance(proposal, SetTo) else None
    change = {"factor": float(proposal.factor)} if isinstance(proposal, Scale) else {"value": value}
    if proposal.knob == LEARNING_RATE:
        return {"kind": "set_learning_rate", "schedule": "keep"} | change
    return {"kind": "set_knobs", "changes": [{"knob": proposal.knob} | change]}


def _about_action(
    proposal: Run, seen: Observation, now: Observation, bounds: AgentBounds, grants: Grants
) -> str | None:
    if proposal.name not in grants.actions:
        return f"the action {proposal.name!r} is not granted to the autopilot"
    action = now.actions.get(proposal.name)
    if action is None:
        return f"this run has no action {proposal.name!r}"
    return _recently(
        proposal.name, seen.actions.get(proposal.name), action, now.step, bounds.cooldown_steps
    ) or _unfit_arguments(action, grants.actions[proposal.name], proposal.arguments)


def _unfit_arguments(action: ActionSeen, granted: Mapping[str, ArgumentGrant], given: Mapping[str, Any]) -> str | None:
    for name in sorted(action.required - given.keys()):
        return f"the argument {name!r} is missing"
    for name, value in given.items():
        kind, within = action.types.get(name), granted.get(name)
        if kind not in ARGUMENT_TYPES or within is None:
            return f"the argument {name!r} is not granted to the autopilot"
        fits = {
            "int": type(value) is int and abs(value) <= MAX_SEED,
            "float": is_number(value),
            "bool": isinstance(value, bool),
        }
        if not fits[kind]:
            return f"the argument {name!r} takes {kind}, not {_shown(value)}"
        if kind != "bool" and (within.min is None or within.max is None):
            return f"the argument {name!r} is a number, but its grant has no min and max"
        if kind != "bool" and not (within.min or 0.0) <= value <= (within.max or 0.0):
            return f"the argument {name!r} is {value:g}; its grant is {within.min:g} to {within.max:g}"
    return None


def _about_knob(
    proposal: Scale | SetTo, seen: Observation, now: Observation, bounds: AgentBounds, grants: Grants
) -> str | None:
    grant, knob = grants.knobs.get(proposal.knob), now.knobs.get(proposal.knob)
    if grant is None and proposal.knob == LEARNING_RATE and now.factor is not None:
        return _about_factor(proposal, seen, now, bounds, now.factor)
    if grant is None:
        return f"the knob {proposal.knob!r} is not granted to the autopilot"
    if knob is None:
        return f"this run has no knob {proposal.knob!r}"
    reason = _recently(proposal.knob, seen.knobs.get(proposal.knob), knob, now.step, grant.cool_down_steps)
    if reason is not None:
        return reason
    if proposal.knob == LEARNING_RATE:
        return _about_rates(proposal, now, bounds, grant)
    if isinstance(proposal, SetTo):
        return _wrong_type(proposal.knob, knob, proposal.value) or _beyond(proposal.knob, knob, grant, proposal.value)
    if knob.spec.kind == "switch" or not is_number(proposal.factor) or proposal.factor <= 0:
        return f"{proposal.knob} cannot be multiplied by {proposal.factor!r}"
    return _beyond(proposal.knob, knob, grant, None, proposal.factor)


def _about_factor(
    proposal: Scale | SetTo, seen: Observation, now: Observation, bounds: AgentBounds, most: float
) -> str | None:
    """Return why the learning rate may not be multiplied by a factor of the model's choice, or None."""
    if not isinstance(proposal, Scale):
        return "the learning rate is multiplied by a factor; setting it to a value is not granted to the autopilot"
    if not is_number(proposal.factor) or proposal.factor <= 0 or proposal.factor == 1:
        return f"lr cannot be multiplied by {_shown(proposal.factor)}"
    if not (1 - SLACK) / most <= proposal.factor <= most * (1 + SLACK):
        return f"lr x {proposal.factor:g} is further than by a factor of {most:g} at once"
    return (
        policy.stale(seen, now, bounds)
        or policy.too_soon(now, bounds)
        or policy.rates_out_of_bounds(now, bounds, factor=proposal.factor)
    )


def _about_rates(proposal: Scale | SetTo, now: Observation, bounds: AgentBounds, grant: KnobGrant) -> str | None:
    given = proposal.value if isinstance(proposal, SetTo) else proposal.factor
    if not is_number(given) or given <= 0:
        return f"a learning rate must be a finite number greater than 0, not {_shown(given)}"
    chosen = {"value": given} if isinstance(proposal, SetTo) else {"factor": given}
    return _beyond_grant(now, grant, **chosen) or policy.rates_out_of_bounds(now, bounds, **chosen)


def _against_grant(proposal: Decision, seen: Observation, now: Observation, grant: KnobGrant | None) -> str | None:
    """Return why the grant of the learning rate forbids double or halve, or None."""
    factor, knob = policy.FACTORS.get(proposal.action), now.knobs.get(LEARNING_RATE)
    if grant is None or factor is None or knob is None:
        return None
    recently = _recently(LEARNING_RATE, seen.knobs.get(LEARNING_RATE), knob, now.step, grant.cool_down_steps)
    return recently or _beyond_grant(now, grant, factor)


def _beyond_grant(
    now: Observation, grant: KnobGrant, factor: float | None = None, value: float | None = None
) -> str | None:
    spec = KnobSpec(LEARNING_RATE, most=MAX_LEARNING_RATE, above=0.0, per_group=True)
    rates = KnobSeen(spec, [rate for rate in now.lr if rate])
    return _beyond(LEARNING_RATE, rates, grant, value, factor)


def _recently(
    name: str, seen: KnobSeen | ActionSeen | None, now: KnobSeen | ActionSeen, step: int, cool_down_steps: int
) -> str | None:
    if seen is None or seen.changed_at != now.changed_at:
        return f"{name} has changed since it was observed"
    if now.pending:
        return f"an earlier change of {name} is still pending"
    if now.changed_at is not None and step - now.changed_at < cool_down_steps:
        return f"cool-down: {name} was changed {step - now.changed_at} steps ago; {cool_down_steps} are required"
    return None


def _wrong_type(name: str, knob: KnobSeen, value: Any) -> str | None:
    fits = {
        "number": is_number(value),
        "integer": is_number(value) and float(value).is_integer(),
        "switch": isinstance(value, bool),
        "numbers": isinstance(value, list | tuple) and all(map(is_number, value)),
    }
    return None if fits[knob.spec.kind] else f"{name} takes {KIND_LABELS[knob.spec.kind]}, not {_shown(value)}"


def _beyond(name: str, knob: KnobSeen, grant: KnobGrant, value: Any, factor: float | None = None) -> str | None:
    """Return why a knob may not become this, or None: its own bounds, the granted ones, the largest factor."""
    if knob.spec.kind == "switch":
        return f"{name} already has this value" if value == knob.value else None
    live = _moved(knob)
    if not live:
        return f"{name} has no value that can be changed"
    becomes = [was * factor for was in live] if factor is not None else _spread(knob, value, len(live))
    if len(becomes) != len(live):
        return f"{name} has another number of values"
    if becomes == live:
        return f"{name} already has this value"
    return next(
        (reason for was, new in zip(live, becomes, strict=True) if (reason := _step(name, knob, grant, was, new))), None
    )


def _spread(knob: KnobSeen, value: Any, count: int) -> list[float]:
    """Repeat a value for each parameter group."""
    if knob.spec.kind != "numbers":
        return finite_numbers(value) * count
    whole = knob.value if knob.spec.per_group and isinstance(knob.value, list) else [knob.value]
    return finite_numbers(value) * sum(group is not None for group in whole)


def _step(name: str, knob: KnobSeen, grant: KnobGrant, was: float, new: float) -> str | None:
    spec = knob.spec
    floors = [bound for bound in (spec.least, grant.min) if bound is not None]
    ceilings = [bound for bound in (spec.most, grant.max) if bound is not None]
    # From beyond a bound, towards it is the way.
    if new < was and (new < max(floors, default=new) or (spec.above is not None and new <= spec.above)):
        return f"{name} would become {new:g}, below what is allowed"
    if not new <= was and (new > min(ceilings, default=new) or (spec.below is not None and new >= spec.below)):
        return f"{name} would become {new:g}, above what is allowed"
    times = new / was if was else (1.0 if new == was else math.inf)
    if not (1 - SLACK) / grant.max_factor <= times <= grant.max_factor * (1 + SLACK):
        return f"{name} would go from {was:g} to {new:g}, further than by a factor of {grant.max_factor:g} at once"
    return None


def _moved(knob: KnobSeen) -> list[float]:
    """Return the numbers that a change moves; groups at 0 stay as they are."""
    keeps_zero = knob.spec.per_group and knob.spec.kind == "number"
    return [number for number in finite_numbers(knob.value) if number or not keeps_zero]


def _shown(value: Any) -> str:
    # Python refuses to format integers of thousands of digits.
    return "a huge integer" if isinstance(value, int) and abs(value) > MAX_SEED else repr(value)[:40]
