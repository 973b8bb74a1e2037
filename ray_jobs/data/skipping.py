"""Batches that commands have left out of a training's data, and its position in data with and without a length.

    skipped = SkippedBatches()
    skipped.add(step=10, batches=3)     # at the boundary after step 10
    skipped.data_step(10)               # 10: that step had taken its batch before
    skipped.data_step(11)               # 14: which global batch of the order, from 1, step 11 takes

Whole global batches are left out, so that a position is the same on any number of ranks. It is a pure function of the
step and of the commands, and both are in every checkpoint.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SkippedBatches:
    """Global batches left out, each number with the step after whose boundary it was."""

    def __init__(self) -> None:
        self._after: list[tuple[int, int]] = []

    @property
    def total(self) -> int:
        """All batches left out so far."""
        return sum(batches for _, batches in self._after)

    def add(self, step: int, batches: int) -> None:
        """Leave out `batches` more, at the boundary after step `step`."""
        self._after.append((step, batches))

    def take_back(self) -> int:
        """Undo the last `add`; return its number of batches."""
        return self._after.pop()[1]

    def before(self, step: int) -> int:
        """Return the number of batches left out before step `step` took its own."""
        return sum(batches for after, batches in self._after if after < step)

    def data_step(self, step: int) -> int:
        """Return which global batch of the order, from 1, step `step` takes."""
        return step + self.before(step)

    def memory(self) -> list[list[int]]:
        """Return what a checkpoint keeps; empty if nothing was left out."""
        return [[after, batches] for after, batches in self._after]

    def recall(self, saved: Iterable[Sequence[int]]) -> None:
        """Restore what `memory` has returned."""
        self._after = [(int(after), int(batches)) for after, batches in saved]


@dataclass(slots=True)
class StreamPlace:
    """Position in data without a length, in whole steps.

    `passes` that have ended, `steps` made in the present one, batches `skipped` in it, and those that are still `due`:
    they are read and dropped before the next step, and where the pass ends first, in the one after it.
    """

    passes: int = 0
    steps: int = 0
    skipped: int = 0
    due: int = 0

    def begin_pass(self, passes: int, steps: int = 0) -> None:
        """Begin a pass, or continue one that was restored; what is due stays due."""
        self.passes, self.steps, self.skipped = passes, steps, 0

    def drop(self) -> None:
        """Count one batch that was due, and was read and dropped."""
        self.skipped, self.due = self.skipped + 1, self.due - 1

    def memory(self) -> list[int]:
        """Return what a checkpoint keeps: pass, steps, and the batches to drop beside them, if there are any."""
        beside = self.skipped + self.due
        return [self.passes, self.steps, *([beside] if beside else [])]

    @classmethod
    def recalled(cls, saved: Sequence[int]) -> "StreamPlace":
        """Return the place that `memory` has kept: the stream is read from the beginning of the pass."""
        passes, steps, *beside = (int(number) for number in saved)
        return cls(passes, steps, due=sum(beside))
