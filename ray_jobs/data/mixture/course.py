"""Course of one source: which of its records the next draws take, pass after pass.

    course = Course.begin("web", shards, seed=7)
    course.places(numpy.arange(3))          # shards and rows of the next three records
    later = course.after(500)               # the same source after 500 draws
    later.with_shards(new, key=3)           # what is still due in this pass, and the new records, in a new random order

A course is immutable. A pass takes every record once; what is due in it is kept as an array of record numbers in the
order in which they will be drawn: 8 bytes a record. Shards keep their numbers, so that a record keeps its own.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

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


def permuted(numbers: Numbers, *place: int | str) -> Numbers:
    """Return the numbers in a random order that follows from `place` alone, on every machine alike.

    Sorts the raw output of a counter-based generator, whose stream NumPy keeps fixed between versions.
    """
    bits = np.random.Philox(np.random.SeedSequence(seed_of(*place))).random_raw(len(numbers))
    return numbers[np.argsort(bits, kind="stable")]


@dataclass(frozen=True, eq=False)
class Course:
    """Course of one source, from a certain draw on.

    shards: all that it has ever had; `gone` lists the indices of those that were moved or withdrawn as a whole.
    pool: numbers of the records of a pass, ascending.
    due: numbers of those that are due in the present pass, in the order of their draws.
    passes: number of the present pass, from 1.
    drawn: draws before.
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

    @classmethod
    def begin(cls, name: str, shards: tuple[SourceShard, ...], seed: int, repeats: bool = True) -> "Course":
        """Return the course of a source that nothing was drawn from."""
        pool = np.arange(sum(shard.records for shard in shards), dtype=np.int64)
        return cls(name, seed, repeats, shards, pool, permuted(pool, seed, "pass", name, 1))

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
            parts += [self._pass(self.passes + 1 + one)[at[passes == one]] for one in np.unique(passes).tolist()]
        records = np.concatenate(parts)
        indices = np.searchsorted(self._offsets, records, side="right") - 1
        return [self.shards[index] for index in indices.tolist()], (records - self._offsets[indices]).tolist()

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
        return replace(self, due=self._pass(passes)[at:], passes=passes, drawn=self.drawn + draws)

    def with_shards(self, shards: tuple[SourceShard, ...], key: int) -> "Course":
        """Return the course with more shards, whose records are due in the present pass. `key` seeds its new order."""
        first = int(self._offsets[-1])
        new = np.arange(first, first + sum(shard.records for shard in shards), dtype=np.int64)
        due = permuted(np.concatenate([self.due, new]), self.seed, "segment", self.name, key)
        return replace(self, shards=self.shards + shards, pool=np.concatenate([self.pool, new]), due=due)

    def without(self, sha256: str, rows: Collection[int] | None) -> "Course":
        """Return the course without rows of a shard (None: all), the rest in the same order.

        Where nothing is due any more, the next pass begins.
        """
        index = self.index_of(sha256)
        first = int(self._offsets[index])
        gone = self.gone | {index} if rows is None else self.gone
        out = np.arange(first, first + self.shards[index].records) if rows is None else first + np.array(sorted(rows))
        pool = self.pool[~np.isin(self.pool, out)]
        withdrawn = self.withdrawn + len(self.pool) - len(pool)
        left = replace(self, pool=pool, due=self.due[~np.isin(self.due, out)], gone=gone, withdrawn=withdrawn)
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
        )
        ours = replace(
            self,
            pool=self.pool[~moved[self.pool]],
            due=self.due[~moved[self.due]],
            gone=self.gone | frozenset(indices),
        )
        return ours._next_pass_if_none_is_due(), theirs._next_pass_if_none_is_due()

    def index_of(self, sha256: str) -> int:
        """Return the index of a shard that it has. Raises `KeyError` for another one."""
        for index, shard in enumerate(self.shards):
            if shard.sha256 == sha256 and index not in self.gone:
                return index
        raise KeyError(sha256)

    def _next_pass_if_none_is_due(self) -> "Course":
        if len(self.due) or not self.repeats:
            return self
        return replace(self, due=self._pass(self.passes + 1), passes=self.passes + 1)

    @cached_property
    def _offsets(self) -> Numbers:
        return np.cumsum([0, *(shard.records for shard in self.shards)], dtype=np.int64)

    def _pass(self, passes: int) -> Numbers:
        """Return the order of a later pass; the last one is kept."""
        if passes not in self._kept:
            self._kept.clear()
            self._kept[passes] = permuted(self.pool, self.seed, "pass", self.name, passes)
        return self._kept[passes]

    @cached_property
    def _kept(self) -> dict[int, Numbers]:
        return {}
