"""A rank with live knobs. It does what a command says, unless its faults say otherwise."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.boundary import Applied, Failure
from control_plane.core.commands import Command, SetLearningRate
from control_plane.core.decisions import find_group
from control_plane.core.records import Reading
from tests.simulation.faults import Faults

GROUPS = ["decay", "no_decay"]
FIRST_RATES = (1e-3, 5e-4)


@dataclass(slots=True)
class SimRank:
    """One rank. `rates` are the live learning rates; `effects` are the commands that they carry, in order."""

    rank: int
    faults: Faults
    rates: list[float] = field(default_factory=lambda: list(FIRST_RATES))
    effects: list[UUID] = field(default_factory=list)
    refused: set[UUID] = field(default_factory=set)
    trouble: tuple[str, str] | None = None
    before: tuple[list[float], list[UUID]] = field(default_factory=lambda: ([], []))

    def knobs(self) -> Reading:
        """What an announcement says about the knobs."""
        return {"lr": list(self.rates), "groups": GROUPS}

    def truth(self, command: Command) -> Reading:
        """The live values that this command is about, whatever the rank may say about them."""
        return {"lr": list(self.rates)} if isinstance(command.intent, SetLearningRate) else {}

    def check(self, command: Command, step: int, is_repeat: bool = False) -> str | None:
        """Why not, or None. What went well once goes well when it is repeated: the same on the same state."""
        self.trouble = None if is_repeat else self.faults.of_rank(self.rank, step)
        if self.trouble and self.trouble[0] == "refuse":
            return self.trouble[1]
        intent = command.intent
        if isinstance(intent, SetLearningRate) and intent.group is not None and self._group(intent) is None:
            return f"there is no parameter group {intent.group!r}"
        return None

    def apply(self, command: Command) -> Applied | Failure:
        """Do it, and read it back."""
        kind, reason = self.trouble or ("", "")
        self.before = (list(self.rates), list(self.effects))
        if kind == "fail":
            return Failure(reason)
        before = self.truth(command)
        self._take_effect(command)
        if kind == "misapply":
            # Each rank is wrong in its own way, see `_odd`.
            self.rates = [rate * (1 + 1e-7 * (self.rank or -1)) for rate in self.rates]
        after = self.truth(command)
        return Applied(
            before,
            {"odd": self.rank} if kind in ("misread", "misapply") and not after else _odd(kind, self.rank, after),
        )

    def _take_effect(self, command: Command) -> None:
        intent = command.intent
        self.effects.append(command.uuid)
        if not isinstance(intent, SetLearningRate):
            return
        chosen = range(len(self.rates)) if intent.group is None else [self._group(intent)]
        for index in chosen:
            assert index is not None
            old = self.rates[index]
            self.rates[index] = intent.value if intent.value is not None else old * (intent.factor or 1.0)

    def _group(self, intent: SetLearningRate) -> int | None:
        return find_group(GROUPS, intent.group) if intent.group is not None else None

    def undo(self) -> str | None:
        """Put back what the last `apply` changed."""
        if self.faults.is_stuck(self.rank):
            return "it is stuck"
        self.rates, self.effects = self.before
        return None

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of this rank."""
        return {"rates": list(self.rates), "effects": list(self.effects)}


def _odd(kind: str, rank: int, reading: Reading) -> Reading:
    # Each rank is wrong in its own way: the same lie told by all of them is agreement, and nobody could tell.
    return {"lr": [rate * (2 + rank) for rate in reading["lr"]]} if kind == "misread" else reading
