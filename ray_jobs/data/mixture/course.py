"""Course of one source: which of its records the next draws take, pass after pass.

    course = Course.begin("web", shards, seed=7)
    course.places(numpy.arange(3))          # shards and rows of the next three records
    later = course.after(500)               # the same source after 500 draws
    later.with_shards(new, key=3)           # what is still due in this pass, and the new records, in a new random order

A course is immutable. A pass takes every record once; what is due in it is kept as an array of record numbers in the
order in which they will be drawn: 8 bytes a record. Shards keep their numbers, so that a record keeps its own.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from control_plane.core.model.data import HELD_OUT_MIXERS, HELD_OUT_STEP
from ray_jobs.data.generators import seed_of

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourceShard:
    """A shard of a source: its content's SHA-256, its number of records, and its file in the run's folder of data.

    `file` is empty for a file of a configured path, which is found by its hash.
    """

    sha256: str
    records: int
    file: str = ""


class Reference(NamedTuple):
    """One record: its source, its shard by SHA-256, its row in it, and the shard's file in the run's folder of data."""

    source: str
    sha256: str
    row: int
    file: str

    @property
    def id(self) -> str:
        """Name of the record, the same on every machine: source, shard and row."""
        return f"{self.source}/{self.sha256}/{self.row}"


def permuted(numbers: Numbers, *place: int | str) -> Numbers:
    """Return the numbers in a random order that follows from `place` alone, on every machine alike.

    Sorts the raw output of a counter-based generator, whose stream NumPy keeps fixed between versions.
    """
    bits = np.random.Philox(np.random.SeedSequence(seed_of(*place))).random_raw(len(numbers))
    return numbers[np.argsort(bits, kind="stable")]


def held_out_keys(sha256: str, records: int) -> npt.NDArray[np.uint64]:
    """Return `core.model.data.held_out_key` of the first rows of a shard, shape `(records,)`."""
    keys = np.uint64(int(sha256[:16], 16)) + np.arange(1, records + 1, dtype=np.uint64) * np.uint64(HELD_OUT_STEP)
    for shift, factor in HELD_OUT_MIXERS:
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys


def _divided(shards: tuple[SourceShard, ...], first: int, held_out: float) -> tuple[Numbers, Numbers]:
    """Return the numbers of these shards' records, from `first` on: those to train on, and those that are held out."""
    numbers = np.arange(first, first + sum(shard.records for shard in shards), dtype=np.int64)
    if not held_out or not shards:
        return numbers, numbers[:0]
    keys = np.concatenate([held_out_keys(shard.sha256, shard.records) for shard in shards])
    is_held = keys < np.uint64(int(held_out * 2**64))
    return numbers[~is_held], numbers[is_held]


@dataclass(frozen=True, eq=False)
class Course:
    """Course of one source, from a certain draw on.

    shards: all that it has ever had; `gone` lists the indices of those that were moved or withdrawn as a whole.
    pool: numbers of the records of a pass, ascending.
    due: numbers of those that are due in the present pass, in the order of their draws.
    passes: number of the present pass, from 1.
    drawn: draws before.
    held_out: share of the records that no pass has; `held` are their numbers, ascending.
    """

    name: str
    seed: int
    repeats: bool
    shards: tuple[SourceShard, ...]
    pool: Numbers
    due: Numbers
    gone: frozenset[int] = frozenset()
    passes: int = 1
    drawn: int = 0
    withdrawn: int = 0
    held_out: float = 0.0
    held: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def begin(
        cls, name: str, shards: tuple[SourceShard, ...], seed: int, repeats: bool = True, held_out: float = 0.0
    ) -> "Course":
        """Return the course of a source that nothing was drawn from."""
        pool, held = _divided(shards, 0, held_out)
        due = permuted(pool, seed, "pass", name, 1)
        return cls(name, seed, repeats, shards, pool, due, held_out=held_out, held=held)

    @property
    def carry(self) -> str:
        """Document that was begun and is not drawn in whole: none, where a sample is a record."""
        return ""

    @property
    def is_empty(self) -> bool:
        """True if there is no next draw: no record at all, or none that is due in a last pass."""
        return len(self.pool) == 0 or (not self.repeats and len(self.due) == 0)

    @property
    def draws_left(self) -> int | None:
        """Draws until it is exhausted; None if it repeats."""
        return None if self.repeats else len(self.due)

    def live_shards(self) -> tuple[SourceShard, ...]:
        """Return the shards that it has."""
        return tuple(shard for index, shard in enumerate(self.shards) if index not in self.gone)

    def places(self, draws: Numbers) -> tuple[list[SourceShard], list[int]]:
        """Return shards and rows of these draws from here, counted from 0 and ascending.

        Those after the last one of a source that does not repeat are left out.
        """
        in_this_pass = int(np.searchsorted(draws, len(self.due)))
        parts, rest = [self.due[draws[:in_this_pass]]], draws[in_this_pass:] - len(self.due)
        if self.repeats and len(self.pool):
            passes, at = np.divmod(rest, len(self.pool))
            parts += [self.of_pass(self.passes + 1 + one)[at[passes == one]] for one in np.unique(passes).tolist()]
        records = np.concatenate(parts)
        indices = np.searchsorted(self._offsets, records, side="right") - 1
        return [self.shards[index] for index in indices.tolist()], (records - self._offsets[indices]).tolist()

    def references(self, draws: Numbers) -> Iterator[Reference]:
        """Yield the records of these draws from here, as `places`."""
        shards, rows = self.places(draws)
        for shard, row in zip(shards, rows, strict=True):
            yield Reference(self.name, shard.sha256, row, shard.file)

    def after(self, draws: int) -> "Course":
        """Return the course after this many draws."""
        if draws == 0:
            return self
        if draws < len(self.due) or (draws == len(self.due) and not self.repeats):
            return replace(self, due=self.due[draws:], drawn=self.drawn + draws)
        if not self.repeats or len(self.pool) == 0:
            raise IndexError(f"source {self.name} has {len(self.due)} records left, not {draws}")
        passes, at = divmod(draws - len(self.due), len(self.pool))
        passes += self.passes + 1
        return replace(self, due=self.of_pass(passes)[at:], passes=passes, drawn=self.drawn + draws)

    def with_shards(self, shards: tuple[SourceShard, ...], key: int) -> "Course":
        """Return the course with more shards, whose records are due in the present pass. `key` seeds its new order."""
        new, held = _divided(shards, int(self._offsets[-1]), self.held_out)
        held = np.concatenate([self.held, held])
        due = permuted(np.concatenate([self.due, new]), self.seed, "segment", self.name, key)
        return replace(self, shards=self.shards + shards, pool=np.concatenate([self.pool, new]), due=due, held=held)

    def without(self, sha256: str, rows: Collection[int] | None) -> "Course":
        """Return the course without rows of a shard (None: all), the rest in the same order.

        Where nothing is due any more, the next pass begins.
        """
        index = self.index_of(sha256)
        first = int(self._offsets[index])
        gone = self.gone | {index} if rows is None else self.gone
        out = np.arange(first, first + self.shards[index].records) if rows is None else first + np.array(sorted(rows))
        pool, held = self.pool[~np.isin(self.pool, out)], self.held[~np.isin(self.held, out)]
        withdrawn = self.withdrawn + len(self.pool) - len(pool) + len(self.held) - len(held)
        due = self.due[~np.isin(self.due, out)]
        left = replace(self, pool=pool, due=due, gone=gone, withdrawn=withdrawn, held=held)
        return left._next_pass_if_none_is_due()

    def split(self, shas: Collection[str], into: str) -> tuple["Course", "Course"]:
        """Return the course without these shards, and the course of a new source that has them."""
        indices = sorted(self.index_of(sha256) for sha256 in shas)
        shards = tuple(self.shards[index] for index in indices)
        firsts = np.cumsum([0, *(shard.records for shard in shards)])
        # Of each record number of this source: its number in the new one, or -1.
        numbers = np.full(int(self._offsets[-1]), -1, dtype=np.int64)
        for at, index in enumerate(indices):
            numbers[self._offsets[index] : self._offsets[index + 1]] = np.arange(firsts[at], firsts[at + 1])
        moved = numbers >= 0
        theirs = Course(
            into,
            self.seed,
            self.repeats,
            shards,
            pool=np.sort(numbers[self.pool[moved[self.pool]]]),
            due=numbers[self.due[moved[self.due]]],
            passes=self.passes,
            held_out=self.held_out,
            held=np.sort(numbers[self.held[moved[self.held]]]),
        )
        ours = replace(
            self,
            pool=self.pool[~moved[self.pool]],
            due=self.due[~moved[self.due]],
            gone=self.gone | frozenset(indices),
            held=self.held[~moved[self.held]],
        )
        return ours._next_pass_if_none_is_due(), theirs._next_pass_if_none_is_due()

    def held_places(self, most: int) -> list[tuple[SourceShard, int]]:
        """Return shards and rows of the records that are held out; of many, the `most` with the smallest keys.

        So these are a random choice of all, and stay the same ones while no shard comes.
        """
        indices = np.searchsorted(self._offsets, self.held, side="right") - 1
        rows = self.held - self._offsets[indices]
        keys = np.zeros(len(rows), dtype=np.uint64)
        for index in np.unique(indices).tolist():
            shard = self.shards[index]
            keys[indices == index] = held_out_keys(shard.sha256, shard.records)[rows[indices == index]]
        chosen = np.argsort(keys, kind="stable")[:most]
        return [(self.shards[indices[at]], int(rows[at])) for at in chosen.tolist()]

    def index_of(self, sha256: str) -> int:
        """Return the index of a shard that it has. Raises `KeyError` for another one."""
        for index, shard in enumerate(self.shards):
            if shard.sha256 == sha256 and index not in self.gone:
                return index
        raise KeyError(sha256)

    def _next_pass_if_none_is_due(self) -> "Course":
        # A source that has no record at all begins no pass before it is given some.
        if len(self.due) or not self.repeats or not len(self.pool):
            return self
        return replace(self, due=self.of_pass(self.passes + 1), passes=self.passes + 1)

    @cached_property
    def _offsets(self) -> Numbers:
        return np.cumsum([0, *(shard.records for shard in self.shards)], dtype=np.int64)

    def of_pass(self, passes: int) -> Numbers:
        """Return the order of a later pass; the last one is kept."""
        if passes not in self._kept:
            self._kept.clear()
            self._kept[passes] = permuted(self.pool, self.seed, "pass", self.name, passes)
        return self._kept[passes]

    @cached_property
    def _kept(self) -> dict[int, Numbers]:
        return {}
