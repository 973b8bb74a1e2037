"""Rules for checkpoints: committed, failed, kept, deleted, adopted, discarded; and for cancels."""

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotFound
from control_plane.core.model.intents import Cancel
from control_plane.core.model.intents.server import AdoptCheckpoint, DeleteCheckpoint, PinCheckpoint
from control_plane.core.model.records import (
    UNIVERSAL,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    CommandSettled,
    Record,
)
from control_plane.core.model.state import RunState
from control_plane.core.model.values import MAX_NAMES_TOLD
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, check_branch_is_free, next_name, stands_on, take_in
from control_plane.core.rules.retention import CheckpointFacts, Retention, to_discard


def commit_checkpoint(state: RunState, checkpoint: CheckpointCommitted) -> list[Record]:
    """Return the record of a committed checkpoint (its manifest is in place). Idempotent."""
    known = any(c.checkpoint == checkpoint.checkpoint for c in state.checkpoints.existing)
    return [] if known or checkpoint.checkpoint in state.checkpoints.discarded else [checkpoint]


def fail_checkpoint(state: RunState, failed: CheckpointFailed) -> list[Record]:
    """Return the record of a failed save. Reported twice, it may be recorded twice: nothing depends on it."""
    known = any(each.checkpoint == failed.checkpoint for each in state.checkpoints.existing)
    return [] if known else [failed]


def cancel_command(state: RunState, command: Command) -> list[Record]:
    """Return the records that cancel a command; none while trainers run, which may hold it and settle both."""
    assert isinstance(command.intent, Cancel)
    life = state.commands.get(command.intent.command)
    if life is None:
        raise NotFound(f"run {state.run} never accepted a command {command.intent.command}")
    if life.settled is not None:
        raise Conflict(f"'{life.command.describe()}' is already {life.status} and cannot be cancelled")
    if isinstance(life.command.intent, Cancel):
        raise Conflict("a cancel cannot be cancelled")
    if life.command.uuid in state.scheduled:
        raise Conflict(f"'{life.command.describe()}' cannot be cancelled: a branch starts with it, or it is replayed")
    if state.generation is not None and state.listens:
        return []
    return [
        CommandSettled(uuid=life.command.uuid, status="cancelled", reason=command.takes_back()),
        CommandSettled(uuid=command.uuid, status="applied", after={"cancelled": str(life.command.uuid)}),
    ]


def keep_or_delete(state: RunState, command: Command) -> list[Record]:
    """Return the records that pin, unpin or delete a checkpoint. Raises `NotFound`, or `Conflict` if it is in use."""
    intent = command.intent
    assert isinstance(intent, PinCheckpoint | DeleteCheckpoint)
    names = [each.checkpoint for each in state.checkpoints.existing]
    checkpoint = state.checkpoints.find(intent.checkpoint)
    if checkpoint is None:
        listed = ", ".join(names[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {state.run} has no checkpoint {intent.checkpoint!r}; the newest are {listed}")
    if isinstance(intent, PinCheckpoint):
        pinned = CheckpointPinned(checkpoint=checkpoint.checkpoint, pinned=intent.pinned)
        after = {"checkpoint": checkpoint.checkpoint, "pinned": intent.pinned}
        return [pinned, CommandSettled(uuid=command.uuid, status="applied", after=after)]
    restored_from = state.generation.checkpoint if state.generation else None
    if checkpoint.checkpoint in stands_on(state) - {names[-1]}:
        raise Conflict(
            f"checkpoint {checkpoint.checkpoint} cannot be deleted: {_dependent(state, checkpoint.checkpoint)}"
        )
    if checkpoint.pinned:
        raise Conflict(f"checkpoint {checkpoint.checkpoint} is pinned; unpin it first")
    if checkpoint.checkpoint == names[-1] or checkpoint.checkpoint == (restored_from or "").removesuffix(UNIVERSAL):
        is_newest = checkpoint.checkpoint == names[-1]
        which = "it is the newest" if is_newest else "the current trainers were restored from it"
        raise Conflict(f"checkpoint {checkpoint.checkpoint} cannot be deleted: {which}")
    gone = CheckpointDiscarded(checkpoint=checkpoint.checkpoint, reason=f"deleted by {command.author}")
    after = {"checkpoint": checkpoint.checkpoint, "deleted": True}
    return [gone, CommandSettled(uuid=command.uuid, status="applied", after=after)]


def _dependent(state: RunState, checkpoint: str) -> str:
    branch = next((branch.name for branch in state.tree.branches.values() if branch.checkpoint == checkpoint), None)
    return f"branch {branch} starts at it" if branch else "a branch or a rollback would restart from it"


def check_adoption(state: RunState, intent: AdoptCheckpoint) -> str:
    """Return the adopted branch's name. Raises `Invalid` for the run itself, `Conflict` for a name that is taken."""
    if intent.run == state.run:
        raise Invalid(
            f"run {state.run} cannot adopt its own checkpoints: roll back to one, or switch to one of its branches"
        )
    if intent.branch is None:
        return next_name(state)
    check_branch_is_free(state, intent.branch)
    return intent.branch


def adopt(state: RunState, command: Command, adopted: AdoptedCheckpoint | None) -> list[Record]:
    """Return the records of an adopted branch, whose files are copied already. Raises what `check_adoption` does."""
    assert isinstance(command.intent, AdoptCheckpoint)
    assert adopted is not None, "the files are copied before the command is accepted"
    checkpoint, origin = adopted.checkpoint, adopted.origin
    if checkpoint.checkpoint in state.checkpoints.committed_seq:
        branch = next((each.name for each in state.tree.branches.values() if each.origin == origin), checkpoint.branch)
        raise Conflict(f"{origin.checkpoint} of run {origin.run} was adopted before, as branch {branch}")
    # Another branch of that name may have begun while the files were copied.
    check_adoption(state, command.intent.model_copy(update={"branch": checkpoint.branch}))
    after = {
        "branch": checkpoint.branch,
        "checkpoint": checkpoint.checkpoint,
        "step": checkpoint.step,
        "from_run": origin.run,
        "from_branch": origin.branch,
        "differing": adopted.differing,
    }
    return [*take_in(adopted), CommandSettled(uuid=command.uuid, status="applied", after=after)]


def retired_checkpoints(state: RunState) -> list[tuple[CheckpointCommitted, str]]:
    """Return the checkpoints outside the run's retention, each with the reason. None without a retention."""
    wanted = state.generation.retention if state.generation else {}
    if not wanted or state.generation is None:
        return []
    # A conversion for another number of ranks belongs to its original.
    in_use = {state.generation.checkpoint.removesuffix(UNIVERSAL)} if state.generation.checkpoint else set()
    in_use |= stands_on(state)
    retention, by_name = (
        Retention.model_validate(wanted),
        {each.checkpoint: each for each in state.checkpoints.existing},
    )
    discarded = [
        gone for branch in state.tree.branches for gone in to_discard(_facts_of(state, branch), retention, in_use)
    ]
    return [(by_name[name], reason) for name, reason in discarded]


def _facts_of(state: RunState, branch: str) -> list[CheckpointFacts]:
    """Return the retention input of one branch: branches must not push out each other's checkpoints."""
    return [
        CheckpointFacts(each.checkpoint, each.step, pinned=each.pinned, metrics=each.metrics)
        # An abandoned, newer checkpoint must not push out one that the run can be restored from.
        for each in state.checkpoints.usable()
        if each.branch == branch
    ]
