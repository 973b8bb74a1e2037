"""Absolute commands: a command that was relative to live values, as one that sets the values it was read back with.

    intents, reason = absolute(intent, outcome, Setting(...))

A factor, a pattern with a factor, and a new schedule depend on what the run holds at their step. In a replay without an
earlier command it holds something else; with the values that the ranks had read back, they have the same result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents import Intent, SetKnobs, SetLearningRate, SetSchedule
from control_plane.core.model.knobs import KnobSpec
from control_plane.core.model.records import CommandSettled
from control_plane.core.model.values import MAX_CHANGES, MAX_LEARNING_RATE, Change
from control_plane.core.rules.admission import find_group

TOTAL_STEPS = "total_steps"

Result = tuple[tuple[Intent, ...], str | None]
"""Intents that together do what one did, and the reason why a part of it stays relative, or None."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Facts of the recorded run at the step of a command.

    groups: names of the parameter groups; knob_facts: specifications of the knobs, as the trainers announced them.
    total_steps: length of the training then. touched: knobs that the command left out had set.
    """

    groups: tuple[str, ...] = ()
    knob_facts: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int = 0
    touched: frozenset[str] = frozenset()

    def is_per_group(self, knob: str) -> bool:
        """Return whether a knob has one value for each parameter group."""
        spec = KnobSpec.parse(knob, self.knob_facts.get(knob))
        return spec is not None and spec.per_group


def absolute(intent: Intent, outcome: CommandSettled, setting: Setting) -> Result:
    """Return an applied intent as intents that set what its ranks read back. Others are returned as they are."""
    after, before = outcome.after or {}, outcome.before or {}
    match intent:
        case SetLearningRate() if intent.factor is not None:
            return _learning_rate(intent, after, setting)
        case SetSchedule():
            return _schedule(intent, after, outcome.step or 0, setting)
        case SetKnobs():
            return _knobs(intent, before, after, setting)
    return (intent,), None


def _learning_rate(intent: SetLearningRate, after: Mapping[str, Any], setting: Setting) -> Result:
    rates = _rates(after)
    if intent.group is None:
        chosen = list(range(len(rates)))
    else:
        index = find_group(list(setting.groups), intent.group)
        chosen = [] if index is None or index >= len(rates) else [index]
    if not chosen or any(rates[index] is None for index in chosen):
        return (intent,), "the learning rates that were read back are not known"
    values = [rates[index] for index in chosen]
    if intent.group is None and len(set(values)) == 1:
        return (SetLearningRate(value=values[0], schedule=intent.schedule),), None
    return (
        tuple(SetLearningRate(value=rates[index], group=index, schedule=intent.schedule) for index in chosen),
        None,
    )


def _rates(after: Mapping[str, Any]) -> list[float | None]:
    """Return the learning rate of each group; None for one that no command can set."""
    rates = after.get(LEARNING_RATE)
    return [_settable(rate) for rate in rates] if isinstance(rates, Sequence) and not isinstance(rates, str) else []


def _settable(rate: object) -> float | None:
    is_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= MAX_LEARNING_RATE
    return float(rate) if is_rate and isinstance(rate, int | float) else None


def _schedule(intent: SetSchedule, after: Mapping[str, Any], step: int, setting: Setting) -> Result:
    """A schedule begins at the live learning rates, and by default it takes the steps that are left."""
    if TOTAL_STEPS in setting.touched and intent.over_steps is None and setting.total_steps:
        left = max(1, setting.total_steps - step - intent.warmup_steps)
        intent = intent.model_copy(update={"over_steps": left})
    if LEARNING_RATE not in setting.touched:
        return (intent,), None
    rates = _rates(after)
    known = [rate for rate in rates if rate is not None]
    if not known:
        return (intent,), "the learning rates at which the schedule began are not known, or 0"
    reason = None if len(known) == len(rates) else "the learning rate of a group was 0, which no command sets"
    if len(known) == len(rates) and len(set(known)) == 1:
        return (SetLearningRate(value=known[0], schedule="hold"), intent), reason
    first = tuple(
        SetLearningRate(value=rate, group=index, schedule="hold")
        for index, rate in enumerate(rates)
        if rate is not None
    )
    return (*first, intent), reason


def _knobs(intent: SetKnobs, before: Mapping[str, Any], after: Mapping[str, Any], setting: Setting) -> Result:
    changes: dict[tuple[str, str], Change] = {}
    unknown = []
    for change in intent.changes:
        absolute_changes = _changes(change, before, after, setting)
        if absolute_changes is None:
            unknown.append(change.knob)
        for one in absolute_changes or (change,):
            changes[one.target] = one
    reason = f"the values that were read back of {', '.join(unknown)} are not known" if unknown else None
    listed = list(changes.values())
    if tuple(listed) == intent.changes:
        return (intent,), reason
    parts = [listed[at : at + MAX_CHANGES] for at in range(0, len(listed), MAX_CHANGES)]
    return tuple(SetKnobs(changes=tuple(part)) for part in parts), reason


def _changes(
    change: Change, before: Mapping[str, Any], after: Mapping[str, Any], setting: Setting
) -> tuple[Change, ...] | None:
    """Return what sets the values that a change was read back with; None if they are not known."""
    if setting.is_per_group(change.knob):
        if change.factor is None and (change.group is not None or change.knob not in setting.touched):
            return (change,)
        return _in_groups(change, before.get(change.knob), after.get(change.knob), setting)
    if change.factor is None:
        return (change,)  # the same modules match a pattern, whatever they hold
    values = {name: _value(value) for name, value in after.items() if _covers(change.knob, name)}
    if not values or any(value is None for value in values.values()):
        return None
    if len({repr(value) for value in values.values()}) == 1:
        return (Change(knob=change.knob, value=next(iter(values.values()))),)
    return tuple(Change(knob=name, value=value) for name, value in values.items())


def _covers(knob: str, name: str) -> bool:
    """Return whether a knob, or a pattern `MODULES:ATTRIBUTE`, stands for the knob of this name."""
    if knob == name or ":" not in knob or ":" not in name:
        return knob == name
    (modules, _, attribute), (module, _, own) = knob.rpartition(":"), name.rpartition(":")
    return attribute == own and fnmatchcase(module, modules)


def _in_groups(change: Change, before: object, after: object, setting: Setting) -> tuple[Change, ...] | None:
    if not isinstance(after, Sequence) or not isinstance(before, Sequence) or len(before) != len(after):
        return None
    if change.group is not None:
        index = find_group(list(setting.groups), change.group)
        chosen = [index] if index is not None and index < len(after) else []
    else:
        # A group that held 0 and still does is one that the command has left as it was.
        chosen = [at for at, value in enumerate(after) if value is not None and not (value == 0 and before[at] == 0)]
    values = {at: _value(after[at]) for at in chosen}
    if not values or any(value is None for value in values.values()):
        return None
    return tuple(Change(knob=change.knob, value=value, group=at) for at, value in values.items())


def _value(value: object) -> Any:
    """Return a value that was read back as a command can set it; None if none can."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        members = [_value(member) for member in value]
        return None if not members or None in members else tuple(float(member) for member in members)
    if isinstance(value, bool) or (isinstance(value, int | float) and isfinite(value)):
        return value
    return None
