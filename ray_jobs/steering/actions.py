"""Script extensions: custom knobs and actions, and the applier of `run_action`.

    session.register_knob("reward/goal", get=lambda: weights.goal, set=weights.set_goal, least=0.0)

    @session.action("reshuffle", description="Draw the samples in another order")
    def reshuffle(seed: int = 0) -> dict[str, int]: ...

A Trainer made by `make_interactive` and a `TrainingSession` both offer these. Arguments are checked against the
function's signature on every rank before any rank calls it.
"""

import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Diverged, Invalid, NotFound
from control_plane.core.model.intents import RunAction
from control_plane.core.model.knobs import KnobKind, KnobValue
from control_plane.core.model.records import Readback
from control_plane.core.model.values import MAX_ARGUMENTS, MAX_NAME_CHARS
from ray_jobs.steering.knobs import Knob, Knobs

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

ARGUMENT_TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
}
MAX_READING_CHARS = 4000
"""Longest result of an action, as JSON: it is journalled for every rank; more than this is data, not a reading."""


@dataclass(frozen=True, slots=True)
class ScriptAction:
    """Action that a script registers by name. `undo` reverts what the last call changed."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    description: str = ""
    undo: Callable[[], object] | None = None

    @property
    def usage(self) -> str:
        """Signature for messages, such as `reshuffle(seed: int = 0)`."""
        return f"{self.name}({', '.join(map(str, self.parameters))})"

    def facts(self) -> Readback:
        """Return description, arguments and whether it can be undone, as plain JSON."""
        arguments = {
            parameter.name: {"type": parameter.annotation.__name__} | _default(parameter)
            for parameter in self.parameters
        }
        return {"description": self.description, "arguments": arguments, "can_be_undone": self.undo is not None}

    def bound(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call's arguments, each of its type. Raises `Invalid` if they do not fit the signature."""
        known = {parameter.name for parameter in self.parameters}
        if unknown := sorted(set(arguments) - known):
            raise Invalid(f"{self.name} has no argument {unknown[0]!r}; it is {self.usage}")
        taken = {}
        for parameter in self.parameters:
            if parameter.name in arguments:
                taken[parameter.name] = _typed(self.name, parameter, arguments[parameter.name])
            elif parameter.default is parameter.empty:
                raise Invalid(f"{self.name} needs the argument {parameter.name!r}; it is {self.usage}")
        return taken


class ScriptActions:
    """Registry of this rank's actions, by name."""

    def __init__(self) -> None:
        self._actions: dict[str, ScriptAction] = {}

    def register(
        self, name: str, call: Callable[..., Any], description: str = "", undo: Callable[[], object] | None = None
    ) -> None:
        """Add an action. Raises `Conflict` for a taken name, `Invalid` for a signature that cannot be checked."""
        if name in self._actions:
            raise Conflict(f"there is an action {name!r} already")
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise Invalid(f"an action's name has 1 to {MAX_NAME_CHARS} characters")
        self._actions[name] = ScriptAction(name, call, _parameters(name, call), description, undo)

    def find(self, name: str) -> ScriptAction:
        """Return the action of this name. Raises `NotFound` with the names of the registered ones."""
        if name not in self._actions:
            raise NotFound(f"there is no action {name!r}; this run has {', '.join(self._actions) or 'none'}")
        return self._actions[name]

    def facts(self) -> Readback:
        """Return description and arguments of every action."""
        return {name: action.facts() for name, action in self._actions.items()}


def _parameters(name: str, call: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    if inspect.iscoroutinefunction(call):
        raise Invalid(f"the action {name!r} is a coroutine, which is never awaited; make it a plain function")
    try:
        parameters = tuple(inspect.signature(call, eval_str=True).parameters.values())
    except (TypeError, ValueError, NameError) as error:
        raise Invalid(f"the signature of the action {name!r} cannot be read: {error}") from None
    if len(parameters) > MAX_ARGUMENTS:
        raise Invalid(f"the action {name!r} has {len(parameters)} arguments; at most {MAX_ARGUMENTS} can be given")
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_name or parameter.annotation not in ARGUMENT_TYPES:
            raise Invalid(
                f"the argument '{parameter}' of the action {name!r} cannot be checked before it is called: give it a "
                "name of its own and one of the annotations int, float, bool, str"
            )
        if parameter.default is not parameter.empty:
            _typed(name, parameter, parameter.default)
    return parameters


def _default(parameter: inspect.Parameter) -> Readback:
    return {} if parameter.default is parameter.empty else {"default": parameter.default}


def _typed(action: str, parameter: inspect.Parameter, value: object) -> object:
    wanted = parameter.annotation
    if wanted is float and type(value) is int:
        value = float(value)
    # Not isinstance: a bool is an int to Python, and a mistake to a person.
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise Invalid(f"the argument {parameter.name!r} of {action} is {value!r}, but takes {ARGUMENT_TYPES[wanted]}")
    return value


class ActionsApplier:
    """Applier of `run_action`. The reading is the action's result, if that is plain JSON."""

    def __init__(self, actions: ScriptActions) -> None:
        self._actions = actions

    def check(self, command: Command) -> str | None:
        """Reject unknown actions and arguments that do not fit the signature."""
        try:
            self._bound(command)
        except (Invalid, NotFound) as refusal:
            return refusal.reason
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Call the action. An exception fails the command."""
        action, arguments = self._bound(command)
        return Applied(before={}, after=_reading(action.name, action.call(**arguments)))

    def undo(self, command: Command) -> None:
        """Call the action's `undo`. Raises `RuntimeError` if the script has registered none."""
        action, _ = self._bound(command)
        if action.undo is None:
            raise RuntimeError(f"the action {action.name!r} has no undo: what it did cannot be put back")
        action.undo()

    def _bound(self, command: Command) -> tuple[ScriptAction, dict[str, Any]]:
        assert isinstance(command.intent, RunAction)
        action = self._actions.find(command.intent.name)
        return action, action.bound(command.intent.arguments)


def _reading(name: str, result: object) -> Readback:
    if result is None or not _is_plain(result):
        return {}
    text = json.dumps(result if isinstance(result, dict) else {"result": result})
    if len(text) > MAX_READING_CHARS:
        log.warning("what %s answered is %d characters long, and is not kept", name, len(text))
        return {}
    return dict(json.loads(text))  # a copy: the script may go on to change what it answered


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


class ScriptExtensions:
    """Extensions of one script, and their part of a checkpoint: the values of its knobs, and its `state`."""

    def __init__(self) -> None:
        self.knobs: list[Knob] = []
        self.actions = ScriptActions()
        # Anything that `torch.save` takes and that the script wants back after a loss, per rank.
        self.state: dict[str, Any] = {}
        self._registry = Knobs()
        self._is_closed = False

    def add(self, knob: Knob) -> None:
        """Add a knob. Raises `Conflict` for a taken name or in a running training, `Invalid` if its value is unfit."""
        self.check_open(knob.name)
        self._registry.register(knob)
        self.knobs.append(knob)

    def check_open(self, name: str) -> None:
        """Raise `Conflict` once the training has begun: the run's knobs and actions are announced at its beginning."""
        if self._is_closed:
            raise Conflict(f"{name!r} comes too late: knobs and actions are registered before the training begins")

    def close(self) -> None:
        """Reject later knobs and actions: the training begins."""
        self._is_closed = True

    def register_knobs(self, knobs: Knobs) -> None:
        """Register the script's knobs with a training's. Raises `Conflict` if a name is taken there."""
        self.close()
        for knob in self.knobs:
            knobs.register(replace(knob, is_own=True))

    def memory(self) -> dict[str, Any]:
        """Return the extensions' part of a checkpoint; may be empty."""
        memory: dict[str, Any] = {"knobs": {knob.name: knob.get() for knob in self.knobs}, "state": self.state}
        return {name: kept for name, kept in memory.items() if kept}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore from a checkpoint. Raises `Diverged` if a knob reads back another value."""
        values = memory.get("knobs", {})
        for knob in self.knobs:
            if knob.name not in values:
                continue
            knob.set(values[knob.name])
            if knob.get() != values[knob.name]:
                raise Diverged(f"{knob.name} was {values[knob.name]!r} and reads {knob.get()!r}")
        self.state.clear()
        self.state.update(memory.get("state", {}))


class Extensible:
    """Mixin for registering a script's own knobs and actions before the training begins."""

    script_extensions: ScriptExtensions

    def register_knob(
        self,
        name: str,
        get: Callable[[], KnobValue],
        set: Callable[[Any], None],
        least: float | None = None,
        most: float | None = None,
        kind: KnobKind = "number",
        description: str = "",
    ) -> None:
        """Register a value of the script that commands may set while it trains.

        `get` answers the live value, the same on every rank: a number, a bool, or a list of numbers, as `kind` says.
        `set` is given a value of the same form; `least` and `most` are inclusive. A value that does not read back as
        it was set fails the command. Raises `Conflict` for a name that is taken or once the training has begun,
        `Invalid` if the live value is not what `kind` and the bounds say.
        """
        knob = Knob(name, get=get, set=set, kind=kind, least=least, most=most, description=description)
        self.script_extensions.add(knob)

    def action(self, name: str, description: str = "", undo: Callable[[], object] | None = None) -> Callable[[F], F]:
        """Register a function that `run_action` calls by name, between two steps, on every rank.

        Its arguments are annotated with int, float, bool or str. What it answers, if it is plain JSON, has to be the
        same on every rank. If it raises, or answers differ, `undo` is called on every rank; without one the trainers
        have to begin anew from the last checkpoint. Raises `Conflict` and `Invalid` like `register_knob`.
        """

        def register(call: F) -> F:
            self.script_extensions.check_open(name)
            self.script_extensions.actions.register(name, call, description, undo)
            return call

        return register
