"""Position of a Trainer's data: which epoch and step of it come next, also after batches were left out.

With a length, an epoch's iterator is left and begun anew at the step that is due: nothing that its workers had fetched
is used, and it is begun exactly as after a failure. Without a length, the same iterator reads and drops what is due.
"""

from collections.abc import Iterable, Sequence

from ray_jobs.checkpoint import loop_state
from ray_jobs.data.skipping import SkippedBatches, StreamPlace


class DataMoved(BaseException):
    """Raised between two steps to begin the iterator of the epoch anew. No `Exception`: a script must not catch it."""


class DataPosition:
    """Position in the data of one training. `stream` is its position where the data has no length."""

    def __init__(self, stream: StreamPlace | None = None, is_restored: bool = False) -> None:
        self.stream, self.skipped = stream, SkippedBatches()
        # The step that comes next does not take the batch that the iterator has next.
        self.is_moved = False
        # A restored training's generators come from its checkpoint; those of a moved one are its own, kept meanwhile.
        self.is_restored = is_restored
        self._random: loop_state.Progress | None = None
        # Epochs between Transformers' count, which knows of none that was left out, and the data's.
        self._epochs_ahead = 0
        # A step, and the position after it, both in steps, where the present iterator was begun.
        self._begun: tuple[int, int] | None = None

    def skip(self, step: int, batches: int) -> None:
        """Leave out the next batches, at the boundary after `step`."""
        self.skipped.add(step, batches)
        if self.stream is not None:
            self.stream.due += batches
        self.is_moved = self.stream is None

    def redraw(self) -> None:
        """Take the next batch as the order has it now: what was fetched is discarded, and the iterator begun anew."""
        self.is_moved = self.stream is None

    def take_back(self) -> None:
        """Undo the last `skip`; an iterator that is begun anew for it begins where it was."""
        batches = self.skipped.take_back()
        if self.stream is not None:
            self.stream.due -= batches

    def recall(self, saved: Iterable[Sequence[int]]) -> None:
        """Restore what a checkpoint has kept of what was left out."""
        self.skipped.recall(saved)
        self.is_moved = self.stream is None and self.skipped.total > 0

    def begin_epoch(self, epoch: int, begun: int, step: int, per_epoch: int) -> tuple[int, int, bool]:
        """Return the epoch to iterate, the steps of it that are over, and whether that is for the data's own reasons.

        Args:
            epoch, begun: the same as Transformers counts them, which knows of no batch that was left out.
            step: steps made so far.
            per_epoch: steps of an epoch.
        """
        moved, self.is_moved = self.is_moved, False
        if moved:
            at, begun = divmod(step + self.skipped.total, per_epoch)
            self._epochs_ahead = at - epoch
            self._random = None if self.is_restored else {"random": loop_state.random_state()}
        if self.stream is not None:
            self.stream.begin_pass(epoch, begun)
        epoch += self._epochs_ahead
        self._begun = (step, epoch * per_epoch + begun)
        return epoch, begun, moved

    def differs(self, step: int) -> bool:
        """Return whether the data is not where it would be after a failure: a script has ended an epoch early."""
        if self._begun is None or self.is_moved or self.stream is not None:
            return False  # the next iterator is begun where a failure would begin it, or the same one is read on
        begun_step, begun = self._begun
        return begun - begun_step != self.skipped.total

    def last_epochs(self, per_epoch: int) -> int:
        """Return how many epochs later the training ends, since its number of steps stays."""
        return -(-self.skipped.total // per_epoch)

    def restore_random(self) -> bool:
        """Restore the generators as they were before a moved iterator was begun. Returns whether there was one."""
        kept, self._random = self._random, None
        if kept is not None:
            loop_state.restore_random(kept)
        return kept is not None
