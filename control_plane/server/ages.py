"""Ages of what a journal has recorded: when knobs were changed, trainers failed, proposals were made.

By a monotonic clock: setting the wall clock must not move a cool-down or a deadline. What an earlier term recorded is
as old as the wall clock says.
"""

from collections.abc import Callable
from uuid import UUID

from control_plane.core.model.records import Entry, GenerationLost
from control_plane.core.model.state import RunState


class Ages:
    """Moments of one run's records, by `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start empty."""
        self._clock = clock
        self._changed_at: dict[str, float] = {}
        # By the number of the failure, from 1.
        self._failed_at: dict[int, float] = {}
        self._proposed_at: dict[UUID, float] = {}

    def note(self, state: RunState, entry: Entry, age_s: float) -> None:
        """Take over an entry that was folded into `state` and was recorded `age_s` seconds ago."""
        at = self._clock() - age_s
        for knob, seq in state.changed_seq.items():
            if seq == entry.seq:
                self._changed_at[knob] = at
        if isinstance(entry.record, GenerationLost):
            self._failed_at.setdefault(len(state.failures), at)
        for status in state.agent.open_proposals():
            self._proposed_at.setdefault(status.command.uuid, at)

    def changed_s_ago(self) -> dict[str, float]:
        """Return the seconds since each knob was last changed."""
        return {knob: self._clock() - at for knob, at in self._changed_at.items()}

    def proposed_s_ago(self, state: RunState) -> dict[UUID, float]:
        """Return the seconds since each open proposal was made."""
        waiting = (status.command.uuid for status in state.agent.open_proposals())
        return {uuid: self._clock() - self._proposed_at[uuid] for uuid in waiting}

    def failed_s_ago(self, failure: int) -> float:
        """Return the seconds since failure number `failure` of the trainers; 0.0 if there was none."""
        at = self._failed_at.get(failure)
        return max(0.0, self._clock() - at) if at is not None else 0.0
