"""The run that nobody ever killed: what its ranks would hold, computed from the journal's settlements alone."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.intents.data import DataIntent
from control_plane.core.model.records import MAIN, CommandSettled
from tests.simulation.world import samples
from tests.simulation.world.rank import FIRST_MARKS, FIRST_RATES, FIRST_VALUES, GROUPS

REPEATABLE = (
    "set_learning_rate",
    "set_knobs",
    "set_schedule",
    "freeze",
    "unfreeze",
    "reset_parameters",
    "skip_samples",
    "run_action",
    "pause",
    "resume",
    "stop",
    *sorted({kind for kind, _ in samples.DATA_KINDS}),
)
FLAGS = ("pause", "resume", "stop")


def is_repeatable(command: Command) -> bool:
    """Does it change the training?"""
    return command.intent.kind in REPEATABLE


@dataclass(slots=True)
class Expected:
    """What every rank must hold."""

    effects: list[UUID] = field(default_factory=list)
    rates: list[float] = field(default_factory=lambda: list(FIRST_RATES))
    values: dict[str, list[float]] = field(default_factory=lambda: deepcopy(FIRST_VALUES))
    marks: dict[str, list[Any]] = field(default_factory=lambda: deepcopy(FIRST_MARKS))
    paused: bool = False
    stopping: bool = False

    def take(self, command: Command, step: int) -> None:
        """One effect more, after a step."""
        body = command.intent.model_dump()
        self.effects.append(command.uuid)
        if body["kind"] == "set_learning_rate":
            _change(self.rates, body)
        elif body["kind"] == "set_knobs":
            for change in body["changes"]:
                _change(self.values.setdefault(change["knob"], []), change)
        elif body["kind"] == "stop":
            self.paused, self.stopping = False, True
        elif body["kind"] in FLAGS:
            self.paused = body["kind"] == "pause"
        else:
            self._mark(body)
        if isinstance(command.intent, DataIntent):
            self.marks["data"].append(samples.change(step, command.intent.model_dump(mode="json")))

    def _mark(self, body: dict[str, Any]) -> None:
        marks, kind = self.marks, body["kind"]
        if kind == "set_schedule":
            marks["schedule"] = [body["shape"]]
        elif kind == "freeze" and body["parameters"] not in marks["frozen"]:
            marks["frozen"] = sorted([*marks["frozen"], body["parameters"]])
        elif kind == "unfreeze":
            gone = marks["frozen"] if body["parameters"] == "*" else [body["parameters"]]
            marks["frozen"] = [each for each in marks["frozen"] if each not in gone]
        elif kind == "reset_parameters":
            marks["weights"] = [(31 * marks["weights"][0] + 1 + body["seed"]) % 2**31]
        elif kind == "skip_samples":
            marks["skipped"] = [body["samples"] + marks["skipped"][0]]
        elif kind == "run_action":
            marks["calls"] = [1 + marks["calls"][0]]


def _change(values: list[float], body: dict[str, Any]) -> None:
    group = body["group"]
    for index, name in enumerate(GROUPS[: len(values)]):
        if group is None or group in (index, name, str(index)):
            values[index] = body["value"] if body["factor"] is None else values[index] * body["factor"]


@dataclass(slots=True)
class Undisturbed:
    """Of every branch the changes of its training in the order of the journal, each with its step.

    A branch begins with what the files of its checkpoint really hold: no rule about branches is asked.
    """

    lines: dict[str, list[tuple[Command, int]]] = field(default_factory=lambda: {MAIN: []})
    head: str = MAIN
    # The pauses and stops that have no effect any more: the run was resumed after them, or taken to another branch.
    over: set[UUID] = field(default_factory=set)

    def tell(self, branch: str, command: Command, outcome: CommandSettled) -> None:
        """The journal says that this command was applied."""
        if is_repeatable(command):
            self.lines[branch].append((command, outcome.step or 0))

    def go_on(self) -> None:
        """Somebody had the run go on: its last stop is over, and so is what that one ended."""
        line = self.lines[self.head]
        stops = [place for place, (command, _) in enumerate(line, start=1) if command.intent.kind == "stop"]
        self.over |= {command.uuid for command, _ in line[: max(stops, default=0)] if command.intent.kind in FLAGS}

    def branch_off(self, branch: str, effects: Sequence[UUID]) -> None:
        """A branch begins in a state that carries these effects, and the run goes there."""
        self.adopt(branch, effects)
        self.turn(branch)

    def adopt(self, branch: str, effects: Sequence[UUID]) -> None:
        """The same, and the run stays where it is."""
        told = {command.uuid: (command, step) for line in self.lines.values() for command, step in line}
        self.lines[branch] = [told[uuid] for uuid in effects if uuid in told]

    def turn(self, branch: str) -> None:
        """The run goes on with this branch, whatever has held it."""
        self.head = branch
        told = (command for line in self.lines.values() for command, _ in line)
        self.over |= {command.uuid for command in told if command.intent.kind in FLAGS}

    def changes(self, branch: str) -> list[tuple[UUID, int]]:
        """What a branch did, but for pauses and stops, with the steps."""
        return [(command.uuid, step) for command, step in self.lines[branch] if command.intent.kind not in FLAGS]

    def elsewhere(self, branch: str) -> set[UUID]:
        """What was only done on other branches."""
        told = {command.uuid for name, line in self.lines.items() if name != branch for command, _ in line}
        return told - {command.uuid for command, _ in self.lines[branch]} if told else told

    def leads_on(self, effects: Sequence[UUID], step: int) -> bool:
        """Whether the head can go on from a state: what it holds came first, and the rest can come in its place."""
        changes = self.changes(self.head)
        known = {command.uuid: command for line in self.lines.values() for command, _ in line}
        held = [uuid for uuid in effects if uuid in known and known[uuid].intent.kind not in FLAGS]
        rest = changes[len(held) :]
        return held == [uuid for uuid, _ in changes[: len(held)]] and all(at >= step for _, at in rest)

    def at(self, branch: str, step: int, fresh: Sequence[tuple[Command, CommandSettled]]) -> Expected:
        """What the ranks hold after `step`; `fresh` are decisions that the journal does not know yet."""
        expected = Expected()
        for command, at_step in self.lines[branch]:
            if at_step <= step and command.uuid not in self.over:
                expected.take(command, at_step)
        for command, outcome in fresh:
            if outcome.status == "applied" and is_repeatable(command):
                expected.take(command, outcome.step or 0)
        return expected
