"""Memory of rounds: a JSONL file with a line when a round has begun and one when it has ended, fsynced.

A round that has begun and not ended is continued by the next call: its run may still train. A last line that a crash
has cut off is dropped. Lines of another config, or of other overrides, are another series and stay where they are.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_LEARNING_RATE

SCHEDULES = ("linear", "cosine", "constant_with_warmup")
REFERENCE = 0

Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class Plan(Message):
    """Plan of one round: the values of the config that it changes. Without any it is the reference."""

    learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)
    schedule: Schedule | None = None

    def overrides(self) -> list[str]:
        """Return the plan as overrides of a config."""
        rate = [f"training.learning_rate={self.learning_rate!r}"] if self.learning_rate is not None else []
        return rate + ([f"training.lr_scheduler_type={self.schedule}"] if self.schedule else [])

    def describe(self) -> str:
        """Return the plan in words."""
        rate = f"lr {self.learning_rate:.4g}" if self.learning_rate is not None else "the config's lr"
        return rate + (f", {self.schedule}" if self.schedule else "")


class RoundBegun(Message):
    """A round has begun. planner: who planned it, and why."""

    type: Literal["begun"] = "begun"
    series: str
    round: int = Field(ge=0)
    run: str
    plan: Plan
    planner: str
    reason: str = ""


class RoundEnded(Message):
    """A round has ended. score: the lower the better; None: the run failed, or its loss is not finite.

    actions: changes by its agent. tokens, cost: of planning and of the agent; cost is None where prices are not known.
    """

    type: Literal["ended"] = "ended"
    series: str
    round: int = Field(ge=0)
    run: str
    status: str
    score: float | None = Field(default=None, allow_inf_nan=False)
    metric: str = ""
    steps: int = 0
    seconds: float = 0.0
    actions: int = 0
    tokens: int = 0
    cost: float | None = None


Line = Annotated[RoundBegun | RoundEnded, Field(discriminator="type")]
LINE: TypeAdapter[RoundBegun | RoundEnded] = TypeAdapter(Line)


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a series: its beginning, and its end if it has ended."""

    begun: RoundBegun
    ended: RoundEnded | None = None

    @property
    def score(self) -> float | None:
        """Return its score, None if it has none."""
        return self.ended.score if self.ended else None


@dataclass(slots=True)
class Memory:
    """Memory of one series of rounds, in a file that may hold other series, too."""

    path: Path
    series: str
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, series: str) -> "Memory":
        """Read a memory; a file that is not there is an empty one. Raises `Damaged`, `Unavailable`."""
        memory = cls(path, series)
        try:
            text = path.read_bytes().decode("utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"the memory {path} cannot be read: {error}") from None
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            with path.open("r+b") as file:
                file.truncate(len(complete.encode()))
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                memory._take(LINE.validate_json(line))
            except ValidationError:
                raise Damaged(f"the memory {path} is damaged at line {number}: it is no record of a round") from None
        return memory

    def add(self, line: RoundBegun | RoundEnded) -> None:
        """Append a line durably. Raises `Unavailable`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"the memory {self.path} cannot be written: {error.strerror or error}") from None
        self._take(line)

    def _take(self, line: RoundBegun | RoundEnded) -> None:
        if line.series != self.series:
            return
        if isinstance(line, RoundBegun):
            self.rounds = [each for each in self.rounds if each.begun.round != line.round] + [Round(line)]
            return
        self.rounds = [
            Round(each.begun, line) if each.begun.round == line.round and each.begun.run == line.run else each
            for each in self.rounds
        ]

    @property
    def unfinished(self) -> Round | None:
        """Return the round that has begun and not ended, if there is one."""
        return next((each for each in self.rounds if each.ended is None), None)

    @property
    def ended(self) -> list[Round]:
        """Return the rounds that have ended, in order."""
        return sorted((each for each in self.rounds if each.ended), key=lambda each: each.begun.round)


def series_of(config: str, overrides: Sequence[str], policy: str | None, seed: int) -> str:
    """Return the name of a series: a digest of what all of its rounds have in common."""
    common = "\0".join([config, *overrides, policy or "", str(seed)])
    return sha256(common.encode()).hexdigest()[:16]
