"""Checkpoints that no record of the journal knows: taken over, collected, or left.

A save that was committed while the control server was gone (its head had died, or rank 0 before it could report) has a
signed manifest and no record. Such a checkpoint is taken over if it continues what the journal knows, so that no step
is trained twice that need not be. What does not, is not of this history and is collected, but for what a person may
want to look at: pinned ones, and the newest of the run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from control_plane.core.model.records import CheckpointCommitted, Record
from control_plane.core.model.state import RunState


@dataclass(frozen=True, slots=True)
class UnrecordedCheckpoint:
    """A checkpoint on the disk that the journal does not know.

    `record` is what its ranks would have reported. `reason` says why its files do not verify, or is empty. `contained`:
    uuids, as text, of the commands that its state contains.
    """

    record: CheckpointCommitted
    run: str
    contained: frozenset[str]
    reason: str = ""


def unrecorded(state: RunState, found: Iterable[UnrecordedCheckpoint]) -> list[UnrecordedCheckpoint]:
    """Return those that the journal knows neither as committed nor as discarded, in the order of their steps."""
    known = {each.checkpoint for each in state.checkpoints.existing} | state.checkpoints.discarded
    mine = (each for each in found if each.record.checkpoint not in known)
    return sorted(mine, key=lambda each: (each.record.generation, each.record.step))


def take_over(state: RunState, found: Iterable[UnrecordedCheckpoint]) -> list[Record]:
    """Return the records of the checkpoints that continue what the journal knows."""
    return [each.record for each in unrecorded(state, found) if reason_against(state, each) is None]


def collect(state: RunState, found: Sequence[UnrecordedCheckpoint]) -> list[tuple[CheckpointCommitted, str]]:
    """Return those that are let go of, each with the reason. Only for a time when nobody trains."""
    left = unrecorded(state, found)
    steps = [each.step for each in state.checkpoints.existing] + [each.record.step for each in left]
    newest = max(steps, default=0)
    return [
        (each.record, f"no record knew it, and {reason}")
        for each in left
        if not each.record.pinned and each.record.step < newest and (reason := reason_against(state, each))
    ]


def reason_against(state: RunState, found: UnrecordedCheckpoint) -> str | None:
    """Return why an unrecorded checkpoint is not of this run's history, or None if it is taken over."""
    record, generation = found.record, state.generation
    if found.reason:
        return f"it does not verify: {found.reason}"
    if found.run != state.run:
        return f"it is of run {found.run}"
    if generation is None or record.generation != state.generation_number:
        return f"it is of generation {record.generation}, and the last one is {state.generation_number}"
    if state.switching or record.branch != state.tree.head or record.branch != generation.branch:
        return f"it is of branch {record.branch}, which the run has left for {state.tree.head}"
    if record.training != generation.training:
        return f"it is of training {record.training}, and the last one is {generation.training}"
    if record.world_size != generation.world_size:
        return f"it is of {record.world_size} ranks, and generation {record.generation} had {generation.world_size}"
    if record.step < generation.step:
        return f"it is of step {record.step}, before step {generation.step}, where its generation began"
    return _reason_by_commands(state, found)


def _reason_by_commands(state: RunState, found: UnrecordedCheckpoint) -> str | None:
    """Return why its commands are not those that the journal knows: restored, one would be applied twice, or never."""
    settled = {str(uuid) for uuid, life in state.commands.items() if life.settled is not None}
    if unknown := sorted(found.contained - settled):
        return f"it contains {len(unknown)} command(s) whose outcome no record has, such as {unknown[0]}"
    for uuid, life in state.commands.items():
        outcome = life.settled
        if outcome is None or outcome.status != "applied" or not life.command.intent.changes_training:
            continue
        here = (life.settled_seq or 0) > state.started_seq and life.branch == found.record.branch
        if here and (outcome.step or 0) < found.record.step and str(uuid) not in found.contained:
            return f"it lacks '{life.command.describe()}', which was applied at step {outcome.step}"
    return None
