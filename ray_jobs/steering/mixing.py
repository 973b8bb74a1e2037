"""Applier of commands about a run's sources: from the next step on, samples are drawn by the changed mixture."""

from typing import TYPE_CHECKING

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.data import FIRST_STEP, MIXTURE, NEXT_SAMPLES, NO_SOURCES
from control_plane.core.model.intents.data import DataIntent

if TYPE_CHECKING:
    from ray_jobs.data.mixture.dataset import MixtureDataset
    from ray_jobs.rank.live_training import LiveTraining

DIGEST_CHARS = 16


class MixtureApplier:
    """Applier of every kind of data command. What it reads back is the whole mixture, which all ranks compare.

    What a loader has fetched beyond the boundary is discarded, and drawn again.
    """

    def __init__(self, training: "LiveTraining") -> None:
        self._loop = training.loop
        self._has_changed = False

    def check(self, command: Command) -> str | None:
        """Reject a change that the mixture cannot take, or shards that this rank cannot read."""
        data = self._loop.mixture
        if data is None:
            return NO_SOURCES
        return self._loop.reason_not_to_skip() or data.reason_against(
            _intent(command), self._number(self._loop.step + 1)
        )

    def apply(self, command: Command, step: int) -> Applied:
        """Make the change: it holds from the batch of the next step on."""
        self._has_changed = False
        data, number = self._data(), self._number(step + 1)
        before = data.status(number)
        data.change(_intent(command), number, self._number(step))
        self._has_changed = True
        self._loop.redraw()
        after = {MIXTURE: data.status(number), FIRST_STEP: step + 1, NEXT_SAMPLES: data.digest(number)[:DIGEST_CHARS]}
        return Applied({"weights": {name: source["weight"] for name, source in before.items()}}, after)

    def undo(self, command: Command) -> None:
        """Continue with the mixture of before."""
        if self._has_changed:
            self._data().order.take_back()
        self._has_changed = False

    def _number(self, step: int) -> int:
        return self._loop.skipped.data_step(step)

    def _data(self) -> "MixtureDataset":
        assert self._loop.mixture is not None
        return self._loop.mixture


def _intent(command: Command) -> DataIntent:
    assert isinstance(command.intent, DataIntent)
    return command.intent
