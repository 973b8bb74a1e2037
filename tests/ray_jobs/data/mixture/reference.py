"""A second implementation of the mixture's order: one sample after the other, from lists of records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_jobs.data.generators import seed_of

BLOCK, WHOLE, GOLDEN = 256, 2**32, 2_654_435_769

Record = tuple[str, int]
"""A shard's SHA-256, and a row."""


def shuffled(things: Sequence[Any], *place: int | str) -> list[Any]:
    """The things in the order that `place` gives them."""
    bits = np.random.Philox(np.random.SeedSequence(seed_of(*place))).random_raw(len(things)).tolist()
    return [things[index] for index in sorted(range(len(things)), key=lambda index: bits[index])]


@dataclass
class Pile:
    """One source: all its records, and those that are due in this pass, the next one first."""

    name: str
    seed: int
    repeats: bool
    records: list[Record]
    due: list[Record] = field(default_factory=list)
    number: int = 1
    taken: set[Record] = field(default_factory=set)
    """What was taken in this pass."""

    def begin(self) -> None:
        """The next pass, once nothing is due."""
        self.number += 1
        self.due, self.taken = shuffled(self.records, self.seed, "pass", self.name, self.number), set()

    def take(self) -> Record:
        """The next record. Within a pass none comes twice, and none is left out."""
        if not self.due:
            assert self.repeats
            assert set(self.records) <= self.taken, "a record was lost in a pass"
            self.begin()
        record = self.due.pop(0)
        assert record not in self.taken, "a record was doubled in a pass"
        self.taken.add(record)
        return record

    def settle(self) -> None:
        """Between two samples: a pass without a record that is due is over."""
        if self.repeats and not self.due and self.records:
            self.begin()

    @property
    def can_be_drawn(self) -> bool:
        return bool(self.due) or (self.repeats and bool(self.records))

    def draw(self) -> str:
        """Name of the next sample."""
        sha, row = self.take()
        return f"{self.name}/{sha}/{row}"


@dataclass
class PackedPile(Pile):
    """One source whose samples are blocks: its documents are cut from one begun document and those that are due."""

    size: int = 0
    length: Callable[[Record], int] = lambda record: 0
    begun: Record | None = None
    used: int = 0
    """Tokens of `begun` that were taken."""

    def draw(self) -> str:
        pieces, wanted = list[str](), self.size
        while wanted:
            if self.begun is None:
                if not self.due and not self.repeats:
                    break
                self.begun, self.used = self.take(), 0
            end = min(self.used + wanted, self.length(self.begun))
            if end > self.used:
                pieces.append(f"{self.begun[0]}/{self.begun[1]}:{self.used}-{end}")
            wanted, self.used = wanted - (end - self.used), end
            if end == self.length(self.begun):
                self.begun = None
        return f"{self.name}/{','.join(pieces)}"

    def settle(self) -> None:
        if self.begun is None:
            super().settle()

    @property
    def can_be_drawn(self) -> bool:
        waiting = self.due if not self.repeats else self.records
        return self.begun is not None or any(self.length(each) for each in waiting)


Make = Callable[..., Pile]
Planned = Sequence[tuple[int, dict[str, float]]]


def apportioned(weights: dict[str, float]) -> list[tuple[str, int]]:
    """Shares of `WHOLE` by largest remainder, as pairs in the order of names."""
    from fractions import Fraction

    total = sum(Fraction(weight) for weight in weights.values())
    exact = [(name, Fraction(weights[name]) / total * WHOLE) for name in sorted(weights)]
    floors = {name: value.numerator // value.denominator for name, value in exact}
    ranked = sorted(exact, key=lambda pair: (-(pair[1] - floors[pair[0]]), pair[0]))
    for name, _ in ranked[: WHOLE - sum(floors.values())]:
        floors[name] += 1
    return [(name, floors[name]) for name, _ in exact]


def block_of(weights: dict[str, float], seed: int, phase: int, block: int) -> list[str]:
    """Names of the sources of a block's samples, in order."""
    threshold = (seed_of(seed, "thresholds", phase) + block * GOLDEN) % WHOLE
    names, edge = list[str](), 0
    for name, share in apportioned(weights):
        upper = edge + share
        names += [name] * ((upper * BLOCK + threshold) // WHOLE - (edge * BLOCK + threshold) // WHOLE)
        edge = upper
    assert len(names) == BLOCK
    return shuffled(names, seed, "block", phase, block)


def drawn(
    sources: dict[str, dict[str, Any]],
    seed: int,
    changes: Sequence[tuple[int, dict[str, Any]]],
    count: int,
    planned: Planned = (),
    make: Make = Pile,
) -> Iterator[str]:
    """Names of the first `count` samples: `source/shard/row`.

    A source is {"weight", "repeats", "shards": [(sha256, records)]}; a change is a position and an intent's body;
    `planned` are the weights that the config has for a position.
    """
    piles, weights = dict[str, Pile](), dict[str, float]()
    for name, source in sources.items():
        records = [(sha, row) for sha, rows in source["shards"] for row in range(rows)]
        first = shuffled(records, seed, "pass", name, 1)
        piles[name], weights[name] = make(name, seed, source["repeats"], records, first), source["weight"]
    coming = list(planned)
    waiting, phase, since = list(changes), 0, 0
    active: dict[str, float] | None = None
    block: list[str] = []
    for position in range(count):
        # As soon as the last record of a source that ends is taken, the others share what is its.
        now = {name: weight for name, weight in weights.items() if weight > 0 and piles[name].can_be_drawn}
        is_planned = bool(coming) and coming[0][0] == position
        if is_planned:
            for pile in piles.values():
                pile.settle()
            new = weights | {name: weight for name, weight in coming.pop(0)[1].items() if name in weights}
            if any(weight > 0 and piles[name].can_be_drawn for name, weight in new.items()):
                weights = new
        if is_planned or (active is not None and now != active):
            phase, since = phase + 1, position
        while waiting and waiting[0][0] == position:
            for pile in piles.values():
                pile.settle()
            change(piles, weights, waiting.pop(0)[1], seed, phase, make)
            phase, since = phase + 1, position
        active = {name: weight for name, weight in weights.items() if weight > 0 and piles[name].can_be_drawn}
        if not active:
            return
        number, at = divmod(position - since, BLOCK)
        block = block_of(active, seed, phase, number) if at == 0 else block
        name = block[at]
        yield piles[name].draw()


def change(
    piles: dict[str, Pile], weights: dict[str, float], body: dict[str, Any], seed: int, phase: int, make: Make
) -> None:
    """Make one change."""
    kind = body["kind"]
    if kind == "set_mixture":
        weights |= body["weights"]
        return
    name = body["source"]
    if kind == "add_source":
        settings = body["settings"]
        records = [(each["sha256"], row) for each in body.get("shards", ()) for row in range(each["records"])]
        repeats = settings.get("exhausted", "repeat") == "repeat"
        piles[name] = make(name, seed, repeats, records, shuffled(records, seed, "pass", name, 1))
        weights[name] = settings["weight"]
    elif kind == "remove_source":
        del piles[name], weights[name]
    elif kind == "add_shards":
        new = [(each["sha256"], row) for each in body["shards"] for row in range(each["records"])]
        pile = piles[name]
        pile.records = pile.records + new
        pile.due = shuffled(pile.due + new, seed, "segment", name, phase)
        pile.taken -= set(new)
    elif kind == "withdraw_samples":
        out = {(body["shard"], row) for row in body["rows"]} if body["rows"] != "all" else None
        pile = piles[name]
        gone = [each for each in pile.records if (each[0] == body["shard"] if out is None else each in out)]
        pile.records = [each for each in pile.records if each not in gone]
        pile.due = [each for each in pile.due if each not in gone]
        if isinstance(pile, PackedPile) and pile.begun in gone:
            pile.begun = None
        pile.settle()
    elif kind == "split_source":
        pile, before = piles[name], len(piles[name].records)
        moved = {each for each in pile.records if each[0] in body["shards"]}
        theirs = make(body["into"], seed, pile.repeats, [each for each in pile.records if each in moved])
        theirs.due, theirs.number = [each for each in pile.due if each in moved], pile.number
        theirs.taken = pile.taken & moved
        if isinstance(pile, PackedPile) and isinstance(theirs, PackedPile) and pile.begun in moved:
            theirs.begun, theirs.used, pile.begun = pile.begun, pile.used, None
        pile.records = [each for each in pile.records if each not in moved]
        pile.due = [each for each in pile.due if each not in moved]
        piles[body["into"]] = theirs
        whole = weights[name]
        part = body.get("weight")
        part = whole * len(theirs.records) / max(1, before) if part is None else part
        weights |= {name: max(0.0, whole - part), body["into"]: part}
        pile.settle()
        theirs.settle()
