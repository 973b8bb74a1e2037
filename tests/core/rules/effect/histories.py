"""Recorded runs for tests of effects: journals by hand, and a rank of plain numbers that records what it reads back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Intent, SetKnobs, SetLearningRate
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, GenerationEnded, Record, RunClosed
from tests.core.examples import created, intent, started, uuid

LAST_STEP = 100
FACTS = {
    "knobs": {"weight_decay": {"per_group": True, "kind": "number"}, "betas": {"per_group": True, "kind": "numbers"}}
}
GROUPS = ["decay", "no_decay"]


def entries_of(*records: Record) -> list[Entry]:
    """The journal of these records."""
    return [Entry(seq=seq, time="2030-01-01T00:00:00Z", record=record) for seq, record in enumerate(records, 1)]


def ended(step: int = LAST_STEP, generation: int = 1) -> tuple[Record, ...]:
    """The training and its run have finished."""
    return GenerationEnded(generation=generation, ending="finished", step=step), RunClosed(ending="finished")


def begun(**knobs: Any) -> Record:
    """The trainers have begun, with two parameter groups."""
    held = {"lr": [1e-3, 5e-4], "schedule": ["keep", "keep"], "groups": GROUPS, "weight_decay": [0.1, 0.0]}
    return started(knobs=held | knobs, facts=FACTS)


def applied(
    number: int,
    step: int,
    body: dict[str, Any],
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> tuple[Record, ...]:
    """Command `number` was sent, and applied after this step."""
    command = Command(uuid=uuid(number), author="ann", intent=intent(**body))
    outcome = CommandSettled(
        uuid=uuid(number),
        status="applied",
        step=step,
        generation=1,
        before=before or {},
        after=after or {},
        world_size=2,
    )
    return CommandAccepted(command=command), outcome


@dataclass
class PlainRank:
    """A rank that holds a few numbers and obeys as the real appliers do: two groups, and dropouts of two modules."""

    lr: list[float] = field(default_factory=lambda: [1e-3, 5e-4])
    weight_decay: list[float] = field(default_factory=lambda: [0.1, 0.0])
    modules: dict[str, float] = field(default_factory=lambda: {"h.0:p": 0.1, "h.1:p": 0.2})

    def read(self) -> dict[str, Any]:
        """Every value."""
        return {"lr": list(self.lr), "weight_decay": list(self.weight_decay), **self.modules}

    def obey(self, what: Intent) -> tuple[dict[str, Any], dict[str, Any]]:
        """Apply, and return the readings that a command of this kind has before and after."""
        before = self.read()
        if isinstance(what, SetLearningRate):
            for index in _chosen(what.group, range(2)):
                self.lr[index] = what.value if what.value is not None else self.lr[index] * (what.factor or 1)
            names: set[str] = {"lr"}
        else:
            assert isinstance(what, SetKnobs)
            names = set().union(*(self._change(change) for change in what.changes))
        after = self.read()
        return {name: before[name] for name in names}, {name: after[name] for name in names}

    def _change(self, change: Any) -> set[str]:
        if change.knob == "weight_decay":
            spared = [at for at in range(2) if self.weight_decay[at] == 0] if change.group is None else []
            for index in _chosen(change.group, [at for at in range(2) if at not in spared]):
                new = change.value if change.factor is None else self.weight_decay[index] * change.factor
                self.weight_decay[index] = float(new)
            return {"weight_decay"}
        names = {name for name in self.modules if fnmatchcase(name, change.knob)}
        for name in names:
            self.modules[name] = float(change.value if change.factor is None else self.modules[name] * change.factor)
        return names


def _chosen(group: int | str | None, groups: Sequence[int] | range) -> list[int]:
    if group is None:
        return list(groups)
    return [GROUPS.index(group) if isinstance(group, str) else group]


def recorded_run(asked: Sequence[tuple[int, Intent]]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """The journal of a run that was sent these intents after these steps, and the rank's values after each."""
    rank, seen = PlainRank(), []
    records: list[Record] = [created(), begun()]
    for number, (step, what) in enumerate(asked, 1):
        before, after = rank.obey(what)
        records += applied(number, step, what.model_dump(), before, after)
        seen.append(rank.read())
    return entries_of(*records, *ended()), seen
