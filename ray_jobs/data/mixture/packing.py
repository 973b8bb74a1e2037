"""Packing: blocks of equally many tokens, cut from the documents of a source one after the other.

    course = PackedCourse.of(Course.begin("web", shards, seed=7), size=128, lengths=lengths)
    course.references(numpy.arange(3))      # the next three blocks: of which documents, and which of their tokens
    later = course.after(500)               # the same source after 500 blocks
    later.carry                             # the document that is cut, and how many of its tokens were taken

The stream of a source is the tokens of its documents in the order of its `Course`, pass after pass. What a block leaves
of its last document is the beginning of the next block, also over a change: the document that was begun comes first,
then what is due in a new order. A document that is withdrawn ends where it was cut. A source that stops fills its last
block up, so that no token is lost; one that repeats goes on in the same block with its next pass.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_jobs.data.mixture.course import Course, Numbers, SourceShard

Lengths = Callable[[SourceShard], npt.NDArray[Any]]
"""Number of tokens of each document of a shard, shape `(records,)`. Raises `Invalid` if it cannot be read."""


class Piece(NamedTuple):
    """Tokens `begin` to `end` of one document: its shard by SHA-256, its row, and the shard's file."""

    sha256: str
    row: int
    file: str
    begin: int
    end: int


class Block(NamedTuple):
    """One packed sample: its source, and the pieces of documents that it consists of, in order."""

    source: str
    pieces: tuple[Piece, ...]

    @property
    def id(self) -> str:
        """Name of the block's tokens, the same on every machine."""
        pieces = ",".join(f"{piece.sha256}/{piece.row}:{piece.begin}-{piece.end}" for piece in self.pieces)
        return f"{self.source}/{pieces}"


@dataclass(frozen=True)
class Stretch:
    """Documents of one pass in order, with the position in the stream at which the tokens of each end."""

    documents: Numbers
    ends: Numbers

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.ends[-1]) if len(self.ends) else 0


@dataclass(frozen=True, eq=False)
class PackedCourse:
    """Course of one source whose samples are blocks, from a certain block on.

    documents: course of its documents, whose first due one is that which the last block has cut, if any.
    offset: tokens of that document that were taken.
    drawn: blocks before.
    """

    documents: Course
    size: int
    lengths: Lengths
    counts: Numbers
    offset: int = 0
    drawn: int = 0

    @classmethod
    def of(cls, documents: Course, size: int, lengths: Lengths) -> "PackedCourse":
        """Return the course of blocks of the documents of a course, from its first due one on."""
        return cls(documents, size, lengths, _counts(documents.shards, lengths))

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.documents.name

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self.documents.seed

    @property
    def shards(self) -> tuple[SourceShard, ...]:
        """All shards that it has ever had."""
        return self.documents.shards

    @property
    def pool(self) -> Numbers:
        """Numbers of the documents of a pass."""
        return self.documents.pool

    @property
    def due(self) -> Numbers:
        """Numbers of the documents of which tokens are due in the present pass."""
        return self.documents.due

    @property
    def passes(self) -> int:
        """Number of the present pass."""
        return self.documents.passes

    @property
    def withdrawn(self) -> int:
        """Documents that were withdrawn."""
        return self.documents.withdrawn

    @property
    def held_out(self) -> float:
        """Share of the documents that no pass has."""
        return self.documents.held_out

    @property
    def held(self) -> Numbers:
        """Numbers of the documents that are held out."""
        return self.documents.held

    def held_places(self, most: int) -> list[tuple[SourceShard, int]]:
        """Return shards and rows of the documents that are held out, as `Course.held_places`."""
        return self.documents.held_places(most)

    @property
    def carry(self) -> str:
        """Document that the last block has cut, and its tokens taken, as `sha256/row+tokens`; empty if it cut none."""
        if not self.offset:
            return ""
        shard, row = self._place(int(self.due[0]))
        return f"{shard.sha256}/{row}+{self.offset}"

    @property
    def is_empty(self) -> bool:
        """True if there is no next block."""
        tokens = self._pool_tokens if self.documents.repeats else self._left
        return tokens == 0

    @property
    def draws_left(self) -> int | None:
        """Blocks until it is exhausted; None if it repeats."""
        return None if self.documents.repeats else -(-self._left // self.size)

    def live_shards(self) -> tuple[SourceShard, ...]:
        """Return the shards that it has."""
        return self.documents.live_shards()

    def index_of(self, sha256: str) -> int:
        """Return the index of a shard that it has. Raises `KeyError` for another one."""
        return self.documents.index_of(sha256)

    def references(self, draws: Numbers) -> Iterator[Block]:
        """Yield these blocks from here, counted from 0; none after the last one of a source that stops."""
        for draw in draws.tolist():
            pieces = tuple(self._pieces(draw * self.size, (draw + 1) * self.size))
            if not pieces:
                return
            yield Block(self.name, pieces)

    def after(self, draws: int) -> "PackedCourse":
        """Return the course after this many blocks."""
        if draws == 0:
            return self
        taken, drawn = draws * self.size, self.drawn + draws
        if taken < self._left:
            stretch, passes, at = self._due, self.passes, self.offset + taken
        elif self.documents.repeats and self._pool_tokens:
            further, at = divmod(taken - self._left, self._pool_tokens)
            passes = self.passes + 1 + further
            stretch = self._of_pass(passes)
        elif draws == self.draws_left:
            none = replace(self.documents, due=self.due[:0])
            return replace(self, documents=none, offset=0, drawn=drawn)
        else:
            raise IndexError(f"source {self.name} has {self.draws_left} blocks left, not {draws}")
        first = int(np.searchsorted(stretch.ends, at, side="right"))
        documents = replace(self.documents, due=stretch.documents[first:], passes=passes)
        offset = at - int(stretch.ends[first - 1] if first else 0)
        return replace(self, documents=documents, offset=offset, drawn=drawn)

    def with_shards(self, shards: tuple[SourceShard, ...], key: int) -> "PackedCourse":
        """Return the course with more shards: the document that was begun first, then the others in a new order."""
        begun = self.due[:1] if self.offset else self.due[:0]
        rest = replace(self.documents, due=self.due[len(begun) :]).with_shards(shards, key)
        documents = replace(rest, due=np.concatenate([begun, rest.due]))
        return replace(self, documents=documents, counts=np.concatenate([self.counts, _counts(shards, self.lengths)]))

    def without(self, sha256: str, rows: Collection[int] | None) -> "PackedCourse":
        """Return the course without documents of a shard (None: all). One that was begun ends where it was cut."""
        left = self.documents.without(sha256, rows)
        is_kept = left.passes == self.passes and len(left.due) > 0 and bool(self.offset) and left.due[0] == self.due[0]
        return replace(self, documents=left, offset=self.offset if is_kept else 0)

    def split(self, shas: Collection[str], into: str) -> tuple["PackedCourse", "PackedCourse"]:
        """Return the course without these shards, and that of a new source that has them, with what was begun."""
        moves = bool(self.offset) and self._place(int(self.due[0]))[0].sha256 in shas
        ours, theirs = self.documents.split(shas, into)
        counts = _counts(theirs.shards, self.lengths)
        return (
            replace(self, documents=ours, offset=0 if moves else self.offset),
            replace(self, documents=theirs, counts=counts, offset=self.offset if moves else 0, drawn=0),
        )

    # --- The stream ---

    @property
    def _left(self) -> int:
        """Tokens that are due in the present pass."""
        return self._due.tokens - self.offset

    @cached_property
    def _pool_tokens(self) -> int:
        return int(self.counts[self.pool].sum())

    @cached_property
    def _due(self) -> Stretch:
        return Stretch(self.due, np.cumsum(self.counts[self.due]))

    def _of_pass(self, passes: int) -> Stretch:
        """Return the documents of a later pass; the last two are kept."""
        if passes not in self._kept:
            for old in sorted(self._kept)[:-1]:
                del self._kept[old]
            order = self.documents.of_pass(passes)
            self._kept[passes] = Stretch(order, np.cumsum(self.counts[order]))
        return self._kept[passes]

    @cached_property
    def _kept(self) -> dict[int, Stretch]:
        return {}

    @cached_property
    def _firsts(self) -> Numbers:
        return np.cumsum([0, *(shard.records for shard in self.shards)], dtype=np.int64)

    def _place(self, document: int) -> tuple[SourceShard, int]:
        index = int(np.searchsorted(self._firsts, document, side="right")) - 1
        return self.shards[index], document - int(self._firsts[index])

    def _pieces(self, begin: int, end: int) -> Iterator[Piece]:
        """Yield the pieces of the stream from here, from token `begin` to `end`; fewer if it ends before."""
        while begin < end:
            if begin < self._left:
                stretch, at, left = self._due, self.offset + begin, self._left - begin
            elif self.documents.repeats and self._pool_tokens:
                further, at = divmod(begin - self._left, self._pool_tokens)
                stretch, left = self._of_pass(self.passes + 1 + further), self._pool_tokens - at
            else:
                return
            yield from self._pieces_of(stretch, at, at + min(left, end - begin))
            begin += left

    def _pieces_of(self, stretch: Stretch, begin: int, end: int) -> Iterator[Piece]:
        index = int(np.searchsorted(stretch.ends, begin, side="right"))
        while begin < end:
            document, last = int(stretch.documents[index]), int(stretch.ends[index])
            first, stop = last - int(self.counts[document]), min(last, end)
            if stop > begin:
                shard, row = self._place(document)
                yield Piece(shard.sha256, row, shard.file, begin - first, stop - first)
            begin, index = stop, index + 1


def _counts(shards: tuple[SourceShard, ...], lengths: Lengths) -> Numbers:
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(lengths(shard), np.int64) for shard in shards)])
