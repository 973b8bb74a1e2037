"""Knobs: values that can be set on this rank, each with name, type, bounds, getter and setter of the live value.

    knobs = Knobs(limits)
    knobs.register(Knob("reward_weight", get=..., set=..., least=0.0, most=10.0, description="..."))

A knob of the optimizer has one value for each parameter group, any other has one. What is written is read back from
the live object; nothing here remembers what it wrote, only which knobs were written: those belong into a checkpoint.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.core.boundary import Applied
from control_plane.core.model import limits as rules
from control_plane.core.model.commands import Change, Command, SetKnobs
from control_plane.core.model.errors import Conflict, Diverged, Invalid, NotFound
from control_plane.core.model.knobs import KnobSpec, KnobValue, is_number
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from control_plane.core.rules.admission import find_group

RESERVED = frozenset({"lr", "schedule", "groups"})
"""Names of other readings beside the knobs; these are set with commands of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob(KnobSpec):
    """Value that can be set while the run trains, with access to the live one.

    `get` returns the live value as plain JSON: a number, a bool, a list of numbers; for a knob of the optimizer, a list
    with one such value per parameter group, and None for a group that has none. `set` is given a value of the same
    form. A `get` that returns None says that there is no one value now, so that there is nothing to set.
    `refusal` returns the reason why a value cannot be taken *now*.
    """

    get: Callable[[], KnobValue]
    set: Callable[[Any], None]
    refusal: Callable[[Any], str | None] = lambda value: None
    # Without a group named, groups that hold 0 stay as they are: the biases and norms that are not to decay.
    spares_zero: bool = False
    # Names of knobs that this one sets all together, and names of knobs whose limits bind it beside its own.
    covers: tuple[str, ...] = ()
    limited_as: tuple[str, ...] = ()
    # A knob of the script's own: `actions.ScriptExtensions` keeps its value in a checkpoint, whether it was set or not.
    is_own: bool = False

    @property
    def limit_names(self) -> tuple[str, ...]:
        """Names under which a run's limits apply to this knob."""
        return (self.name, *self.covers, *self.limited_as)


class Knobs:
    """Registry of this rank's knobs, in the order of registration."""

    def __init__(self, limits: Mapping[str, Limit] | None = None, group_names: Callable[[], list[str]] = list) -> None:
        self._knobs: dict[str, Knob] = {}
        self._sources: list[Callable[[str], list[Knob]]] = []
        self._limits = dict(limits or {})
        self.group_names = group_names
        # Those that were set, and that nobody else keeps: a checkpoint has to hold them.
        self._set: dict[str, Knob] = {}
        # What a checkpoint held of knobs that nobody has registered yet.
        self._awaited: Readback = {}

    def register(self, knob: Knob) -> None:
        """Add a knob; a value that a checkpoint held of it is restored.

        Raises: `Conflict` for a name that is taken, `Invalid` if its live value is not what it says.
        """
        if knob.name in self._knobs or knob.name in RESERVED or ":" in knob.name:
            raise Conflict(f"the name {knob.name!r} is taken, or holds a colon; call the knob something else")
        if reason := knob.reason_against(knob.get()):
            raise Invalid(f"the knob {knob.name!r} reads {knob.get()!r}: {reason}")
        self._knobs[knob.name] = knob
        if knob.name in self._awaited:
            self._put_back(knob, self._awaited.pop(knob.name))

    def add_source(self, find: Callable[[str], list[Knob]]) -> None:
        """Add a lookup for knobs too many to list: by `PATTERN:ATTRIBUTE`, or one by its name."""
        self._sources.append(find)

    def readings(self) -> Readback:
        """Return the live value of every listed knob, and of those found by a pattern that were set."""
        listed = {name: value for name, knob in self._knobs.items() if (value := knob.get()) is not None}
        covered = {name for knob in self._knobs.values() if knob.name in listed for name in knob.covers}
        return listed | {name: knob.get() for name, knob in self._set.items() if name not in covered}

    def value(self, name: str) -> KnobValue:
        """Return the live value of one listed knob; None if there is none of that name."""
        knob = self._knobs.get(name)
        return knob.get() if knob is not None else None

    def facts(self) -> Readback:
        """Return type, bounds and description of every listed knob."""
        return {name: knob.facts() for name, knob in self._knobs.items()}

    def memory(self) -> Readback:
        """Return the knobs' part of a checkpoint: the value of every knob that was set, except those stored in the
        optimizer's groups or as the script's own."""
        return {name: knob.get() for name, knob in self._set.items() if knob.get() is not None} | self._awaited

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore from a checkpoint; a knob that is not registered yet is set when it is.

        Raises `Diverged` if a knob does not hold what was saved.
        """
        for name, value in memory.items():
            try:
                (knob,) = self._find(name)
            except NotFound:
                self._awaited[name] = value
            else:
                self._put_back(knob, value)

    def _put_back(self, knob: Knob, value: KnobValue) -> None:
        knob.set(value)
        if knob.get() != value:
            raise Diverged(f"{knob.name} was {value!r} and reads {knob.get()!r}")
        # Also one of the script's own, as older checkpoints have it: what is saved next must be what was restored.
        self._enter([knob])

    def was_set(self, knobs: Sequence[Knob]) -> list[str]:
        """Mark knobs as set, to be kept in checkpoints; return the names that are new."""
        return self._enter([knob for knob in knobs if not knob.per_group and not knob.is_own])

    def _enter(self, knobs: Sequence[Knob]) -> list[str]:
        parts = [part for knob in knobs for part in self._parts(knob)]
        new = [part.name for part in parts if part.name not in self._set]
        self._set |= {part.name: part for part in parts}
        return new

    def forget(self, names: Sequence[str]) -> None:
        """Undo `was_set`."""
        for name in names:
            self._set.pop(name, None)

    def _parts(self, knob: Knob) -> list[Knob]:
        return [part for name in knob.covers for part in self._find(name)] or [knob]

    def beside(self, knobs: Sequence[Knob]) -> list[Knob]:
        """Return the knobs to read back whenever these are set: they cover them, or are covered and were set."""
        names = {knob.name for knob in knobs}
        covering = [knob for name, knob in self._knobs.items() if name not in names and names & set(knob.covers)]
        covered = {name for knob in knobs for name in knob.covers} - names
        return covering + [knob for name, knob in self._set.items() if name in covered]

    def planned(self, changes: Sequence[Change]) -> list[tuple[Knob, Any]]:
        """Return the knobs that the changes set, each with its full new value. Writes nothing.

        Raises: `NotFound` for an unknown knob or group, `Invalid` for a value that it cannot take.
        """
        planned: dict[str, tuple[Knob, Any]] = {}
        for change in changes:
            for knob in self._find(change.knob):
                before = planned[knob.name][1] if knob.name in planned else knob.get()
                planned[knob.name] = knob, self._new_value(knob, before, change)
        # Against what is live now: two changes of one knob must not add up to more than is allowed.
        for knob, value in planned.values():
            if reason := knob.refusal(value) or self._breach(knob, knob.get(), value):
                raise Invalid(reason)
        return list(planned.values())

    def _find(self, name: str) -> list[Knob]:
        if name in self._knobs:
            if self._knobs[name].get() is None:
                raise NotFound(f"{name} has no one value now; set its parts by a pattern instead")
            return [self._knobs[name]]
        matching = [knob for source in self._sources for knob in source(name)] if ":" in name else []
        if not matching:
            listed = ", ".join(self._knobs) or "none"
            lr = "; the learning rate is set with set_learning_rate" if name in ("lr", "learning_rate") else ""
            raise NotFound(
                f"there is no knob {name!r}; this run has {listed}, and PATTERN:ATTRIBUTE for its modules{lr}"
            )
        return matching

    def _new_value(self, knob: Knob, before: KnobValue, change: Change) -> KnobValue:
        after: KnobValue
        if knob.per_group:
            assert isinstance(before, list)
            chosen = self._groups(knob, change, before)
            after = [_turned(knob, value, change) if at in chosen else value for at, value in enumerate(before)]
            fitted: KnobValue = [after[at] for at in sorted(chosen)]
        elif change.group is not None:
            raise Invalid(f"{knob.name} is one for all parameter groups; leave 'group' out")
        else:
            fitted = after = _turned(knob, before, change)
        if reason := knob.reason_against(fitted):
            raise Invalid(reason)
        return after

    def _breach(self, knob: Knob, before: KnobValue, after: KnobValue) -> str | None:
        if knob.per_group:  # a group that stays as it is breaks no limit
            assert isinstance(before, list)
            assert isinstance(after, list)
            changed = [(was, becomes) for was, becomes in zip(before, after, strict=True) if was != becomes]
            before, after = [was for was, _ in changed], [becomes for _, becomes in changed]
        return next(
            (
                reason
                for name in knob.limit_names
                if (reason := rules.reason_against_value(self._limits, name, before, after))
            ),
            None,
        )

    def barred(self, knobs: Sequence[Knob], role: str | None, changed_s_ago: Mapping[str, float]) -> str | None:
        """Return the reason why this role may not change one of these knobs now, or None."""
        names = [name for knob in knobs for name in knob.limit_names]
        return next(
            (
                reason
                for name in names
                if (reason := rules.reason_against_change(self._limits, name, role, changed_s_ago))
            ),
            None,
        )

    def _groups(self, knob: Knob, change: Change, before: list[Any]) -> set[int]:
        """Return the indices of the parameter groups that a change applies to."""
        names = self.group_names() or [str(index) for index in range(len(before))]
        if change.group is not None:
            index = find_group(names, change.group)
            if index is None or index >= len(before):
                raise NotFound(f"there is no parameter group {change.group!r}; this run has {names}")
            if before[index] is None:
                raise Invalid(f"parameter group {change.group!r} has no {knob.name}")
            return {index}
        chosen = {index for index, value in enumerate(before) if value is not None}
        if not knob.spares_zero:
            return chosen
        spared = {index for index in chosen if before[index] == 0}
        if spared == chosen:
            raise Invalid(
                f"{knob.name} is 0 in every parameter group; name the group that is to get another value: {names}"
            )
        return chosen - spared


def _turned(knob: Knob, before: KnobValue, change: Change) -> KnobValue:
    """Return one value after the change."""
    factor = change.factor
    if factor is not None:
        if knob.kind == "switch":
            raise Invalid(f"{knob.name} is true or false, and cannot be multiplied")
        assert before is not None
        scaled: Any = [number * factor for number in before] if isinstance(before, list) else before * factor
        return round(scaled) if knob.kind == "integer" and math.isfinite(scaled) else scaled
    value: KnobValue = list(change.value) if isinstance(change.value, tuple) else change.value
    if knob.kind == "numbers" and isinstance(before, list) and isinstance(value, list) and len(before) != len(value):
        raise Invalid(f"{knob.name} has {len(before)} numbers, and {len(value)} were given")
    if knob.kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)  # 10.0 is how some senders spell 10
    return float(value) if knob.kind == "number" and is_number(value) else value


class KnobsApplier:
    """Applier of `set_knobs`: every change, or none of them.

    `is_repeated`: True for a command of a replayed history, which runs faster than the original: no cool-down applies.
    """

    def __init__(
        self,
        knobs: Knobs,
        is_repeated: Callable[[Command], bool] = lambda command: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._knobs, self._is_repeated, self._clock = knobs, is_repeated, clock
        self._undo: list[tuple[Knob, Any]] = []
        self._new: list[str] = []
        self._changed_at: dict[str, float] = {}
        self._changed_before: dict[str, float] = {}

    def check(self, command: Command) -> str | None:
        """Reject unknown knobs and groups, values of a wrong type or out of bounds, and changes that limits forbid."""
        try:
            planned = self._plan(command)
        except (Invalid, NotFound) as refusal:
            return refusal.reason
        now = self._clock()
        ago_s = {} if self._is_repeated(command) else {name: now - at for name, at in self._changed_at.items()}
        return self._knobs.barred([knob for knob, _ in planned], command.role, ago_s)

    def apply(self, command: Command, step: int) -> Applied:
        """Write, then read back from the live objects. Raises `RuntimeError` if a readback differs."""
        self._undo, self._new = [], []  # a plan that fails must not undo the command before this one
        self._changed_before = self._changed_at
        planned = self._plan(command)
        read = [knob for knob, _ in planned]
        read += self._knobs.beside(read)
        before = {knob.name: knob.get() for knob in read}
        self._undo = [(knob, before[knob.name]) for knob, _ in planned]
        self._new = self._knobs.was_set([knob for knob, _ in planned])
        for knob, value in planned:
            knob.set(value)
        after = {knob.name: knob.get() for knob in read}
        for knob, value in planned:
            if after[knob.name] != value:
                raise RuntimeError(f"{knob.name} was set to {value!r} and reads {after[knob.name]!r}")
        names = [name for knob, _ in planned for name in knob.limit_names]
        self._changed_at = self._changed_before | dict.fromkeys(names, self._clock())
        return Applied(before, after)

    def undo(self, command: Command) -> None:
        """Restore every knob. Raises `RuntimeError` if a readback differs."""
        for knob, value in reversed(self._undo):
            knob.set(value)
            if knob.get() != value:
                raise RuntimeError(f"{knob.name} was to be put back to {value!r} and reads {knob.get()!r}")
        self._knobs.forget(self._new)
        self._changed_at = self._changed_before

    def _plan(self, command: Command) -> list[tuple[Knob, Any]]:
        assert isinstance(command.intent, SetKnobs)
        return self._knobs.planned(command.intent.changes)
