"""Phase of a mixture: the samples between two changes, as a pure function of their positions.

phase.at(position)      # (source, shard, row) of one sample
phase.end               # the first position that it does not have, since a source is exhausted there, or None
phase.courses_at(p)     # each source's course after the samples before position p
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ray_jobs.data.generators import seed_of
from ray_jobs.data.mixture.course import Course, Reference, permuted
from ray_jobs.data.mixture.packing import Block, PackedCourse
from ray_jobs.data.mixture.shares import BLOCK, BlockPlan, whole_shares

Sample = Reference | Block
"""What a position names: a record, or a block that is packed from several."""

AnyCourse = Course | PackedCourse


def share_weights(
    weights: Mapping[str, float], courses: Mapping[str, AnyCourse], temperature: float = 1.0
) -> dict[str, float]:
    """Return the weights by which sources are drawn: those that have a record to draw and a weight."""
    drawn = {name: weight for name, weight in weights.items() if weight > 0 and not courses[name].is_empty}
    return drawn if temperature == 1.0 else {name: weight ** (1 / temperature) for name, weight in drawn.items()}


class Phase:
    """Samples from position `first` on, drawn from `courses` by `weights`. `number` counts phases and seeds its blocks.

    Without a source to draw from it has no sample: `end` is `first`. `planned`: scheduled changes of weights before.
    """

    def __init__(
        self,
        first: int,
        number: int,
        courses: Mapping[str, AnyCourse],
        weights: Mapping[str, float],
        seed: int,
        temperature: float = 1.0,
        planned: int = 0,
    ) -> None:
        self.planned = planned
        self.first, self.number, self.seed, self.temperature = first, number, seed, temperature
        self.courses, self.weights = dict(courses), dict(weights)
        drawn = share_weights(weights, courses, temperature)
        self.shares = whole_shares(drawn) if drawn else {}
        self._plan = BlockPlan(self.shares, seed_of(seed, "thresholds", number))
        self._drawn = [self.courses[name] for name in self._plan.names]
        self._block: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._references: tuple[int, dict[int, Sample]] | None = None

    def at(self, position: int) -> Sample:
        """Return the record of the sample at a position of this phase."""
        block, at = divmod(position - self.first, BLOCK)
        if self._references is None or self._references[0] != block:
            self._references = block, self._referred_in(block)
        return self._references[1][at]

    def courses_at(self, position: int) -> dict[str, AnyCourse]:
        """Return every source's course after the samples of this phase that are before `position`."""
        if not self.shares:
            return dict(self.courses)
        block, at = divmod(position - self.first, BLOCK)
        sources, _ = self._drawn_in(block)
        within = np.bincount(sources[:at], minlength=len(self._drawn))
        counts = dict(zip(self._plan.names, (self._plan.before(block) + within).tolist(), strict=True))
        return {name: course.after(counts.get(name, 0)) for name, course in self.courses.items()}

    @cached_property
    def end(self) -> int | None:
        """First position after the one that takes the last record of a source that does not repeat; None: never."""
        if not self.shares:
            return self.first
        ends = [
            self._position_of(index, course.draws_left - 1) + 1
            for index, course in enumerate(self._drawn)
            if course.draws_left is not None and self.shares[course.name]
        ]
        return min(ends, default=None)

    def _position_of(self, source: int, draw: int) -> int:
        block = self._plan.block_of_draw(source, draw)
        sources, draws = self._drawn_in(block)
        within = np.flatnonzero((sources == source) & (draws == draw))
        return self.first + block * BLOCK + int(within[0])

    def _referred_in(self, block: int) -> dict[int, Sample]:
        """Return the records of a block's samples by their place in it; none beyond the phase's end."""
        sources, draws = self._drawn_in(block)
        records = dict[int, Sample]()
        for index, course in enumerate(self._drawn):
            at = np.flatnonzero(sources == index)
            records |= dict(zip(at.tolist(), course.references(draws[at]), strict=False))
        return records

    def _drawn_in(self, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return, of each sample of a block, the index of its source and the number of its draw, shapes `(BLOCK,)`."""
        if self._block is None or self._block[0] != block:
            counts, before = self._plan.counts(block), self._plan.before(block)
            sources = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
            sources = permuted(sources, self.seed, "block", self.number, block)
            draws = np.empty(BLOCK, dtype=np.int64)
            for index, (count, first) in enumerate(zip(counts.tolist(), before.tolist(), strict=True)):
                draws[sources == index] = np.arange(first, first + count)
            self._block = block, sources, draws
        return self._block[1], self._block[2]
