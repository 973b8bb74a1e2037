"""Scripted person of the study of feedback: dislikes some fields, of which the game's reward knows nothing, and errs.

person = Person(seed=1)
body, looked_at = person.lines("scores", read_episodes(folder)[100], judged=16)
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.workloads.grid import SIDE, Rewards

DISLIKED = frozenset(2 * SIDE + column for column in range(1, SIDE))
"""The third row but for its first field: a river with a bridge, between the goal and two starts in five."""

MOST_ENTRIES = 3
"""A score counts entries up to here: a person does not tell eight from nine."""

ERRS = 0.1
"""Share of the judgements that are the opposite of what the person thinks."""

GOAL = SIDE * SIDE - 1


@dataclass(frozen=True)
class Seen:
    """One game, as it was written out: its line, and the numbers of the fields of its path, the first its start."""

    line: dict[str, Any]
    path: tuple[int, ...]

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Seen":
        """Return the game of a line."""
        fields = (field.split(",") for field in line["path"].split(" > "))
        return cls(line, tuple(int(row) * SIDE + int(column) for row, column in fields))

    @property
    def entries(self) -> int:
        """Number of moves onto a disliked field, or back onto it from a wall."""
        return sum(field in DISLIKED for field in self.path[1:])

    @property
    def reached(self) -> bool:
        """True if it ended at the goal."""
        return self.path[-1] == GOAL

    @property
    def returns(self) -> float:
        """Sum of the game's own rewards."""
        rewards, moves = Rewards(), len(self.path) - 1
        walls = sum(one == next_one for one, next_one in zip(self.path, self.path[1:], strict=False))
        return moves * rewards.step + walls * rewards.wall + (rewards.goal if moves and self.reached else 0.0)

    @property
    def wanted(self) -> float:
        """Worth to the person: the game's return, less one for each entry of a disliked field."""
        return self.returns - self.entries


class Person:
    """A person whose errors follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def lines(self, kind: str, games: Sequence[Seen], judged: int) -> tuple[bytes, int]:
        """Return what the person says of games, as lines of a source of this kind, and how many games were looked at.

        A score is 1, or minus the number of entries. Of two games the one with fewer entries is preferred; of two that
        have equally many nothing is said.
        """
        if kind == "scores":
            records = [one.line | {"score": self._score(one)} for one in games[:judged]]
            looked_at = len(games[:judged])
        else:
            pairs = list(zip(games[::2], games[1::2], strict=False))[:judged]
            records = [self._preferred(*pair) for pair in pairs if pair[0].entries != pair[1].entries]
            looked_at = 2 * len(pairs)
        return b"".join(json.dumps(record).encode() + b"\n" for record in records), looked_at

    def _score(self, one: Seen) -> float:
        score = 1.0 if one.entries == 0 else -float(min(MOST_ENTRIES, one.entries))
        return -score if self._chance.random() < ERRS else score

    def _preferred(self, one: Seen, other: Seen) -> dict[str, Any]:
        better, worse = sorted((one, other), key=lambda each: each.entries)
        if self._chance.random() < ERRS:
            better, worse = worse, better
        names = f"{better.line['episode']} before {worse.line['episode']}"
        return {"episode": names, "preferred": better.line["features"], "rejected": worse.line["features"]}


def read_episodes(folder: Path) -> dict[int, list[Seen]]:
    """Return the games that a run has written out so far, by step."""
    return {
        int(path.stem): [Seen.of(json.loads(line)) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
