"""A rank with live knobs. It does what a command says, unless its faults say otherwise."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.boundary import Applied, Failure
from control_plane.core.model import limits as rules
from control_plane.core.model.commands import Change, Command, SetKnobs, SetLearningRate
from control_plane.core.model.data import MIXTURE
from control_plane.core.model.intents import (
    Freeze,
    Intent,
    ResetParameters,
    Rollback,
    RunAction,
    SetSchedule,
    SkipSamples,
    Unfreeze,
)
from control_plane.core.model.intents.data import DataIntent
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from control_plane.core.rules.admission import find_group
from tests.simulation.world import samples
from tests.simulation.world.faults import Faults
from tests.simulation.world.saved import Saved

GROUPS = ["decay", "no_decay"]
FIRST_RATES = (1e-3, 5e-4)
FIRST_VALUES = {"weight_decay": [0.1, 0.0], "gradient_clipping": [1.0]}
"""Knobs beside the learning rate: one per parameter group, and one for the whole run."""
FIRST_MARKS: dict[str, list[Any]] = {
    "schedule": ["own"],
    "frozen": [],
    "weights": [0],
    "calls": [0],
    "skipped": [0],
    "data": [],
}
"""What the other commands leave on a rank. `weights` depends on the order of the resets; `data` are the changes of the
mixture, each with its position, of which the rank's order of samples follows."""
ACTION = "reshuffle"
"""The one action that the script has."""

Before = tuple[list[float], dict[str, list[float]], dict[str, list[Any]], list[UUID]]


@dataclass(slots=True)
class SimRank:
    """One rank. `rates` and `values` are its live knobs, `marks` what else was done to it.

    `effects` are the commands that they carry, in order. `limits` are the run's, which it votes by.
    """

    rank: int
    faults: Faults
    rates: list[float] = field(default_factory=lambda: list(FIRST_RATES))
    values: dict[str, list[float]] = field(default_factory=lambda: deepcopy(FIRST_VALUES))
    marks: dict[str, list[Any]] = field(default_factory=lambda: dict(FIRST_MARKS))
    effects: list[UUID] = field(default_factory=list)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    # What there is under a checkpoint's name.
    find: Callable[[str], Saved | None] = lambda name: None
    refused: set[UUID] = field(default_factory=set)
    trouble: tuple[str, str] | None = None
    # The step at whose boundary it votes.
    step: int = 0
    before: Before = field(default_factory=lambda: ([], {}, {}, []))

    def knobs(self) -> Readback:
        """What an announcement says about the knobs."""
        return {"lr": list(self.rates), "groups": GROUPS}

    def held(self) -> Readback:
        """Every knob that is live."""
        return {"lr": list(self.rates), **deepcopy(self.values), **self.marks}

    def truth(self, command: Command) -> Readback:
        """The live values that this command is about, whatever the rank may say about them."""
        if isinstance(command.intent, SetKnobs):
            return {change.knob: list(self.values.get(change.knob, [])) for change in command.intent.changes}
        if isinstance(command.intent, Rollback):
            return self._destination(command.intent)
        if isinstance(command.intent, DataIntent):
            odd = [mark for mark in self.marks["data"] if not samples.is_change(mark)]
            return {MIXTURE: samples.order(self.marks["data"]).status(samples.position(self.step)), "odd": odd}
        if (mark := mark_of(command)) is not None:
            return {mark: list(self.marks[mark])}
        return {"lr": list(self.rates)} if isinstance(command.intent, SetLearningRate) else {}

    def check(self, command: Command, step: int, is_repeat: bool = False) -> str | None:
        """Why not, or None. What went well once goes well when it is repeated: the same on the same state."""
        self.step = step
        self.trouble = None if is_repeat else self.faults.of_rank(self.rank, step)
        if self.trouble and self.trouble[0] == "refuse":
            return self.trouble[1]
        return self._problem(command.intent)

    def _problem(self, intent: Intent) -> str | None:
        changes: tuple[SetLearningRate | Change, ...] = ()
        if isinstance(intent, Rollback):
            first = (why for each in intent.first if (why := self._problem(each)))
            return self._unreachable(intent) or next(first, None)
        if isinstance(intent, SetLearningRate):
            changes = (intent,)
        elif isinstance(intent, SetKnobs):
            changes = intent.changes
            unknown = [change.knob for change in intent.changes if change.knob not in self.values]
            if unknown:
                return f"there is no knob {unknown[0]!r}"
        elif isinstance(intent, RunAction) and intent.name != ACTION:
            return f"there is no action {intent.name!r}"
        elif isinstance(intent, DataIntent):
            return samples.order(self.marks["data"]).reason_against(intent, samples.position(self.step))
        for change in changes:
            if change.group is not None and find_group(GROUPS, change.group) is None:
                return f"there is no parameter group {change.group!r}"
        return self.breach(changes)

    def _unreachable(self, intent: Rollback) -> str | None:
        if intent.checkpoint is None:
            return None
        saved = self.find(intent.checkpoint)
        return f"checkpoint {intent.checkpoint} is not what was saved" if saved is None or saved.is_damaged else None

    def _destination(self, intent: Rollback) -> Readback:
        saved = self.find(intent.checkpoint) if intent.checkpoint is not None else None
        if saved is None or intent.checkpoint is None:
            return {"branch": intent.branch}
        return {"checkpoint": intent.checkpoint, "step": saved.step, "from_branch": saved.branch}

    def breach(self, changes: tuple[SetLearningRate | Change, ...]) -> str | None:
        """Which of the run's limits would be broken."""
        for change in changes if self.limits else ():
            knob = change.knob if isinstance(change, Change) else "lr"
            before = self.values[knob] if isinstance(change, Change) else self.rates
            after = list(before)
            _turn(after, change)
            if problem := rules.reason_against_value(self.limits, knob, before, after):
                return problem
        return None

    def apply(self, command: Command) -> Applied | Failure:
        """Do it, and read it back."""
        kind, reason = self.trouble or ("", "")
        self.before = (list(self.rates), deepcopy(self.values), dict(self.marks), list(self.effects))
        if kind == "fail":
            return Failure(reason)
        before = self.truth(command)
        self._take_effect(command)
        if kind == "misapply":
            # Each rank is wrong in its own way, see `_odd`.
            self.rates = [rate * (1 + 1e-7 * (self.rank or -1)) for rate in self.rates]
            self.values = {
                name: [value + 1e-7 * (self.rank or -1) for value in values] for name, values in self.values.items()
            }
            self.marks = {name: [*marks, f"odd {self.rank}"] for name, marks in self.marks.items()}
        after = self.truth(command)
        if kind in ("misread", "misapply") and (not after or isinstance(command.intent, Rollback)):
            return Applied(before, after | {"odd": self.rank})
        return Applied(before, _odd(kind, self.rank, after))

    def _take_effect(self, command: Command) -> None:
        intent = command.intent
        self.effects.append(command.uuid)
        if isinstance(intent, SetLearningRate):
            _turn(self.rates, intent)
        elif isinstance(intent, SetKnobs):
            for change in intent.changes:
                _turn(self.values[change.knob], change)
        elif (mark := mark_of(command)) is not None:
            self.marks[mark] = marked(command, self.marks[mark], self.step)

    def undo(self) -> str | None:
        """Put back what the last `apply` changed."""
        if self.faults.is_stuck(self.rank):
            return "it is stuck"
        self.rates, self.values, self.marks, self.effects = self.before
        return None

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of this rank."""
        return {
            "rates": list(self.rates),
            "values": deepcopy(self.values),
            "marks": dict(self.marks),
            "effects": list(self.effects),
        }


def mark_of(command: Command) -> str | None:
    """Which of a rank's marks a command changes."""
    match command.intent:
        case SetSchedule():
            return "schedule"
        case Freeze() | Unfreeze():
            return "frozen"
        case ResetParameters():
            return "weights"
        case RunAction():
            return "calls"
        case SkipSamples():
            return "skipped"
        case DataIntent():
            return "data"
    return None


def marked(command: Command, now: list[Any], step: int) -> list[Any]:
    """The mark after the command."""
    match command.intent:
        case SetSchedule(shape=shape):
            return [shape]
        case Freeze(parameters=pattern):
            return sorted({*now, pattern})
        case Unfreeze(parameters=pattern):
            return [each for each in now if pattern not in ("*", each)]
        case ResetParameters(seed=seed):
            return [(now[0] * 31 + seed + 1) % 2**31]
        case SkipSamples(samples=skipped):
            return [now[0] + skipped]
        case DataIntent() as intent:
            return [*now, samples.change(step, intent.model_dump(mode="json"))]
    return [now[0] + 1]


def _turn(values: list[float], change: SetLearningRate | Change) -> None:
    """Set one value, or all of them."""
    only = find_group(GROUPS, change.group) if change.group is not None else None
    for index, old in enumerate(values):
        if change.group is None or index == only:
            new = change.value if isinstance(change.value, float) else old * (change.factor or 1.0)
            values[index] = float(new)


def _odd(kind: str, rank: int, reading: Readback) -> Readback:
    # Each rank is wrong in its own way: the same lie told by all of them is agreement, and nobody could tell.
    if kind != "misread":
        return reading
    return {name: [value * (2 + rank) for value in values] for name, values in reading.items()}
