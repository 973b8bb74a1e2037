"""What can be set on this rank: knobs, each with a name, a type, bounds, and ways to read and to write the live value.

    knobs = Knobs(limits)
    knobs.register(Knob("reward_weight", get=..., set=..., least=0.0, most=10.0, description="..."))

A knob of the optimizer has one value for each parameter group, any other has one. What is written is read back from
the live object; nothing here remembers what it wrote.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from control_plane.core import limits as rules
from control_plane.core.boundary import Applied
from control_plane.core.commands import Change, Command, SetKnobs
from control_plane.core.decisions import find_group
from control_plane.core.errors import Conflict, Invalid, NotFound
from control_plane.core.limits import Limit
from control_plane.core.records import Reading

Kind = Literal["number", "integer", "switch", "numbers"]
KINDS: dict[str, str] = {
    "number": "a finite number",
    "integer": "a whole number",
    "switch": "true or false",
    "numbers": "a list of finite numbers",
}


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that can be set while the run trains.

    `get` answers the live value as plain JSON: a number, a bool, a list of numbers; for a knob of the optimizer, a list
    with one such value per parameter group. `set` is given a value of the same form. `least` and `most` are inclusive.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], None]
    kind: Kind = "number"
    least: float | None = None
    most: float | None = None
    per_group: bool = False
    description: str = ""

    def facts(self) -> Reading:
        """What a person or an agent must know to set it."""
        told = {"kind": self.kind, "least": self.least, "most": self.most, "description": self.description}
        return {"per_group": self.per_group} | {name: value for name, value in told.items() if value not in (None, "")}


class Knobs:
    """All knobs of this rank, in the order of their registration."""

    def __init__(self, limits: Mapping[str, Limit] | None = None, group_names: Callable[[], list[str]] = list) -> None:
        self._knobs: dict[str, Knob] = {}
        self._sources: list[Callable[[str], list[Knob]]] = []
        self._limits = dict(limits or {})
        self.group_names = group_names

    def register(self, knob: Knob) -> None:
        """Add one. Raises `Conflict` for a name that is taken, `Invalid` if its live value is not what it says."""
        if knob.name in self._knobs or ":" in knob.name:
            raise Conflict(f"there is a knob {knob.name!r} already, or its name holds a colon")
        if problem := _misfit(knob, knob.get()):
            raise Invalid(f"the knob {knob.name!r} reads {knob.get()!r}: {problem}")
        self._knobs[knob.name] = knob

    def add_source(self, find: Callable[[str], list[Knob]]) -> None:
        """Add a way to find knobs by a pattern (`PATTERN:ATTRIBUTE`), of which there may be too many to list."""
        self._sources.append(find)

    def readings(self) -> Reading:
        """The live value of every listed knob."""
        return {name: knob.get() for name, knob in self._knobs.items()}

    def facts(self) -> Reading:
        """Type, bounds and description of every listed knob."""
        return {name: knob.facts() for name, knob in self._knobs.items()}

    def planned(self, changes: Sequence[Change]) -> list[tuple[Knob, Any]]:
        """What changes mean, one after the other: knobs, each with its new value in full. Nothing is written.

        Raises: `NotFound` for an unknown knob or group, `Invalid` for a value that it cannot take.
        """
        planned: dict[str, tuple[Knob, Any]] = {}
        for change in changes:
            for knob in self._find(change.knob):
                before = planned[knob.name][1] if knob.name in planned else knob.get()
                planned[knob.name] = knob, self._new_value(knob, before, change)
        return list(planned.values())

    def _find(self, name: str) -> list[Knob]:
        if name in self._knobs:
            return [self._knobs[name]]
        found = [knob for source in self._sources for knob in source(name)] if ":" in name else []
        if not found:
            listed = ", ".join(self._knobs) or "none"
            raise NotFound(f"there is no knob {name!r}; this run has {listed}, and PATTERN:ATTRIBUTE for its modules")
        return found

    def _new_value(self, knob: Knob, before: Any, change: Change) -> Any:
        if knob.per_group:
            chosen = self._groups(change, len(before))
            after = [_turned(knob, each, change) if at in chosen else each for at, each in enumerate(before)]
        elif change.group is not None:
            raise Invalid(f"{knob.name} is one for all parameter groups; leave 'group' out")
        else:
            after = _turned(knob, before, change)
        if problem := _misfit(knob, after) or rules.breach(self._limits, change.knob, before, after):
            raise Invalid(problem if problem.startswith(change.knob) else f"{knob.name} cannot be {after!r}: {problem}")
        return after

    def _groups(self, change: Change, count: int) -> set[int]:
        if change.group is None:
            return set(range(count))
        names = self.group_names()
        index = find_group(names, change.group)
        if index is None or index >= count:
            raise NotFound(f"there is no parameter group {change.group!r}; this run has {names}")
        return {index}


def _turned(knob: Knob, before: Any, change: Change) -> Any:
    """One value after the change."""
    if change.factor is not None:
        if knob.kind == "switch":
            raise Invalid(f"{knob.name} is true or false, and cannot be multiplied")
        scaled = [each * change.factor for each in before] if isinstance(before, list) else before * change.factor
        return round(scaled) if knob.kind == "integer" else scaled
    value = change.value
    if isinstance(value, tuple):
        value = [float(each) for each in value]
    if knob.kind == "numbers" and isinstance(before, list) and isinstance(value, list) and len(before) != len(value):
        raise Invalid(f"{knob.name} has {len(before)} numbers, and {len(value)} were given")
    return float(value) if knob.kind == "number" and isinstance(value, int) and not isinstance(value, bool) else value


def _misfit(knob: Knob, value: Any) -> str | None:
    """Why the knob cannot hold this, or None."""
    for each in value if knob.per_group and isinstance(value, list) else [value]:
        if knob.per_group and each is None:
            continue  # a group without this hyper-parameter
        if not _is_of(knob.kind, each):
            return f"{knob.name} takes {KINDS[knob.kind]}"
        for number in _numbers(each):
            if knob.least is not None and number < knob.least:
                return f"{knob.name} is at least {knob.least:g}, not {number:g}"
            if knob.most is not None and number > knob.most:
                return f"{knob.name} is at most {knob.most:g}, not {number:g}"
    return None


def _is_of(kind: Kind, value: Any) -> bool:
    match kind:
        case "switch":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "numbers":
            return isinstance(value, list) and all(_is_of("number", each) for each in value)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        yield from (number for each in value for number in _numbers(each))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


class KnobsApplier:
    """Carries out `set_knobs`: every change, or none of them."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._undo: list[tuple[Knob, Any]] = []

    def check(self, command: Command) -> str | None:
        """Unknown knobs and groups, values of a wrong type or out of bounds."""
        try:
            self._plan(command)
        except (Invalid, NotFound) as refusal:
            return refusal.reason
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Write, and read back from the live objects. Raises `RuntimeError` if one holds anything else."""
        planned = self._plan(command)
        before = {knob.name: knob.get() for knob, _ in planned}
        self._undo = [(knob, before[knob.name]) for knob, _ in planned]
        for knob, value in planned:
            knob.set(value)
        after = {knob.name: knob.get() for knob, _ in planned}
        for knob, value in planned:
            if after[knob.name] != value:
                raise RuntimeError(f"{knob.name} was set to {value!r} and reads {after[knob.name]!r}")
        return Applied(before, after)

    def undo(self, command: Command) -> None:
        """Every knob as it was. Raises `RuntimeError` if one cannot be put back."""
        for knob, value in reversed(self._undo):
            knob.set(value)
            if knob.get() != value:
                raise RuntimeError(f"{knob.name} was to be put back to {value!r} and reads {knob.get()!r}")

    def _plan(self, command: Command) -> list[tuple[Knob, Any]]:
        assert isinstance(command.intent, SetKnobs)
        return self._knobs.planned(command.intent.changes)
