"""Applier of `skip_samples`: moves this rank's data on by whole global batches, from the next step on."""

import hashlib
from typing import TYPE_CHECKING

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import SkipSamples
from control_plane.core.model.records import Readback

if TYPE_CHECKING:
    from ray_jobs.rank.live_training import LiveTraining


class SkipApplier:
    """Applier of `skip_samples`. What it reads back is where the data continues, which all ranks compare."""

    def __init__(self, training: "LiveTraining") -> None:
        self._loop, self._global_batch_samples = training.loop, training.global_batch_samples
        self._has_skipped = False

    def check(self, command: Command) -> str | None:
        """Reject data whose order is not ours."""
        return self._loop.reason_not_to_skip()

    def apply(self, command: Command, step: int) -> Applied:
        """Leave out the samples, rounded up to whole global batches."""
        self._has_skipped = False
        batches = -(-_samples(command) // self._global_batch_samples)
        before = self._position(step)
        self._loop.skip(batches)
        self._has_skipped = True
        left_out = {"batches": batches, "skipped": batches * self._global_batch_samples}
        return Applied(before, left_out | self._position(step))

    def undo(self, command: Command) -> None:
        """Continue with the batch that was next before."""
        if self._has_skipped:
            self._loop.take_back_skip()
        self._has_skipped = False

    def _position(self, step: int) -> Readback:
        """Return the number, from 1, of the global batch that the next step takes, and a digest of its sample ids."""
        number, order = self._loop.skipped.data_step(step + 1), self._loop.sample_order
        if self._loop.mixture is not None:
            return {"next_batch": number, "next_samples": self._loop.mixture.digest(number)[:16]}
        if order is None:
            return {"next_batch": number}
        ids = hashlib.sha256(order.batch(number).tobytes()).hexdigest()
        return {"next_batch": number, "next_samples": ids[:16]}


def _samples(command: Command) -> int:
    assert isinstance(command.intent, SkipSamples)
    return command.intent.samples
