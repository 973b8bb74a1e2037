"""Knob specification: type, bounds and description of a value that can be set while a run trains.

The trainers announce their knobs as JSON, by name (`facts`); everybody else reads them with `KnobSpec.parse`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

KnobKind = Literal["number", "integer", "switch", "numbers"]
KnobValue = bool | int | float | list[Any] | None
"""A number, a bool or a list of numbers; per parameter group a list of those, with None for groups without one."""

KIND_LABELS: dict[KnobKind, str] = {
    "number": "a finite number",
    "integer": "a whole number",
    "switch": "true or false",
    "numbers": "a list of finite numbers",
}
MAX_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly."""

MAX_FLOAT = 1.7976931348623157e308
"""Largest finite float, `sys.float_info.max`."""

BOUNDS = ("least", "most", "above", "below")


@dataclass(frozen=True, slots=True)
class KnobSpec:
    """Specification of a knob. `least` and `most` are inclusive, `above` and `below` are not."""

    name: str
    kind: KnobKind = "number"
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    per_group: bool = False
    description: str = ""

    @classmethod
    def parse(cls, name: str, facts: object) -> "KnobSpec | None":
        """Return the specification from its JSON, or None if that is malformed: it comes from a run's script."""
        if not isinstance(facts, Mapping):
            return None
        kind, bounds = facts.get("kind", "number"), {bound: facts.get(bound) for bound in BOUNDS}
        if kind not in get_args(KnobKind) or not all(value is None or is_number(value) for value in bounds.values()):
            return None
        return cls(name, kind, **bounds, per_group=bool(facts.get("per_group")), description=_text(facts))

    def facts(self) -> dict[str, Any]:
        """Return the specification as JSON, without its name."""
        facts = {name: getattr(self, name) for name in ("kind", *BOUNDS, "description")}
        return {"per_group": self.per_group} | {name: fact for name, fact in facts.items() if fact not in (None, "")}

    def reason_against(self, value: object) -> str | None:
        """Return the reason why the knob cannot hold this value (with `per_group`, one per group), or None."""
        for one in value if self.per_group and isinstance(value, list) else [value]:
            if self.per_group and one is None:
                continue  # a group without this hyper-parameter
            if not is_of(self.kind, one):
                return f"{self.name} takes {KIND_LABELS[self.kind]}, not {one!r}"[:300]
            for number in numbers(one):
                if reason := self._out_of_bounds(number):
                    return f"{self.name} {reason}, not {number:g}"
        return None

    def _out_of_bounds(self, number: float) -> str | None:
        if self.least is not None and number < self.least:
            return f"is at least {self.least:g}"
        if self.most is not None and number > self.most:
            return f"is at most {self.most:g}"
        if self.above is not None and number <= self.above:
            return f"is above {self.above:g}"
        if self.below is not None and number >= self.below:
            return f"is below {self.below:g}"
        return None


def _text(facts: Mapping[str, object]) -> str:
    return str(facts.get("description", ""))


def is_of(kind: KnobKind, value: object) -> bool:
    """Return whether a value is of a knob's kind."""
    match kind:
        case "switch":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER
        case "number":
            return is_number(value)
        case "numbers":
            return isinstance(value, list) and all(map(is_number, value))


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether this is a finite number, and not an integer too large for a float."""
    # A NaN is not smaller than anything.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT


def numbers(value: object) -> list[float]:
    """Return all numbers of a value, those in nested lists included; without integers too large for a float."""
    if isinstance(value, list | tuple):
        return [number for one in value for number in numbers(one)]
    return [float(value)] if isinstance(value, float) or is_number(value) else []


def finite_numbers(value: object) -> list[float]:
    """Return the finite numbers of a value, those in nested lists included."""
    return [number for number in numbers(value) if is_number(number)]
