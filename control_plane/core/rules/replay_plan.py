"""Replay plan: a recorded run as scheduled commands for a new run, each at the step where it took effect.

    schedule = recorded(entries, until_step)

Rollbacks divide a run into parts. In each part the commands that took effect are repeated in the order of their
decision; failures and repetitions in between are skipped, since they do not change the result. The checkpoints to which
the run was rolled back are saved again under their names, each at its place among the commands of its step; others are
not, as they change nothing. Checkpoints that the run was forked from, or adopted, are copied to the new run first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from control_plane.core.model.commands import Command, Pause, Resume, SaveCheckpoint, Stop
from control_plane.core.model.errors import Conflict
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import BranchResumed, BranchStarted, CheckpointCommitted, Entry, GenerationStarted
from control_plane.core.model.state import CommandStatus, RunState, fold
from control_plane.core.rules.branch_rules import ScheduledCommand, first_uuid


@dataclass(slots=True)
class Part:
    """Commands that took effect, and checkpoints, between two rollbacks."""

    lives: list[CommandStatus] = field(default_factory=list)
    saved: list[CheckpointCommitted] = field(default_factory=list)


def recorded(entries: Sequence[Entry], until_step: int | None = None) -> tuple[ScheduledCommand, ...]:
    """Return the commands of a run with their steps; with `until_step`, cut off there by a stop.

    Raises `Conflict` if the run never started, or if a checkpoint to which it was rolled back was discarded.
    """
    state = fold(list(entries))
    if state.generation is None:
        raise Conflict(f"run {state.run} never started training: nothing to replay")
    wanted = _bases(state)
    items = [item for part in _parts(state, entries) for item in _in_order(part, wanted)]
    end = until_step if until_step is not None else _open_end(state)
    if until_step is not None:
        late = next((at for at, item in enumerate(items) if item.step > until_step), len(items))
        items = items[:late]
    if end is not None and not (items and isinstance(items[-1].command.intent, Stop)):
        stop = Command(uuid=uuid5(UUID(int=end), state.run), author="replay", intent=Stop())
        items.append(ScheduledCommand(command=stop, step=end))
    return tuple(items)


def _open_end(state: RunState) -> int | None:
    """Return the stop step for replaying a run that has not finished; None if it has finished or reached its end."""
    ended = state.closed is not None and state.closed.ending in ("finished", "stopped")
    reached = state.tree.reached.get(state.tree.head, state.step)
    total_steps = state.generation.total_steps if state.generation else 0
    return None if ended or reached >= total_steps else reached


def _bases(state: RunState) -> dict[str, UUID]:
    """Return the checkpoints to which the run was rolled back, each with its first rollback."""
    wanted: dict[str, UUID] = {}
    known = {each.checkpoint for each in state.checkpoints.existing}
    for branch in state.tree.branches.values():
        if branch.checkpoint is None or branch.rollback is None:
            continue
        if branch.checkpoint not in known:
            raise Conflict(f"run {state.run} was rolled back to {branch.checkpoint}, which has been discarded since")
        wanted.setdefault(branch.checkpoint, branch.rollback)
    return wanted


def _parts(state: RunState, entries: Sequence[Entry]) -> list[Part]:
    parts, part_of, first = [Part()], dict[int, int](), _first_uuids(state)
    for entry in entries:
        record = entry.record
        if isinstance(record, BranchStarted | BranchResumed):
            parts.append(Part())
        elif isinstance(record, GenerationStarted):
            part_of[record.generation] = len(parts) - 1
        elif isinstance(record, CheckpointCommitted) and record.generation:
            parts[part_of.get(record.generation, 0)].saved.append(record)
    for life in sorted(state.commands.values(), key=lambda life: life.settled_seq or 0):
        outcome = life.settled
        if outcome is None or outcome.status != "applied" or life.command.uuid in first:
            continue
        if life.command.intent.is_replayed:
            began = sum(branch_seq < (life.settled_seq or 0) for branch_seq in _turns(entries))
            parts[part_of.get(outcome.generation or -1, began)].lives.append(life)
    return parts


def _turns(entries: Sequence[Entry]) -> list[int]:
    return [entry.seq for entry in entries if isinstance(entry.record, BranchStarted | BranchResumed)]


def _first_uuids(state: RunState) -> set[UUID]:
    """Return the uuids of initial changes of branches: the replay's own rollbacks include them."""
    rollbacks = (life.command for life in state.commands.values())
    return {
        first_uuid(command.uuid, place)
        for command in rollbacks
        if isinstance(command.intent, Rollback)
        for place in range(len(command.intent.first))
    }


def _in_order(part: Part, wanted: dict[str, UUID]) -> list[ScheduledCommand]:
    items = [_again(life) for life in part.lives]
    # A save is settled when it has ended, which may be steps later; the others in the order of their decision.
    items.sort(key=_where)
    asked = {item.command.intent.name for item in items if isinstance(item.command.intent, SaveCheckpoint)}
    for saved in part.saved:
        if saved.checkpoint in wanted and saved.checkpoint not in asked:
            items.insert(_place(items, saved), _save(saved, wanted[saved.checkpoint]))
    return _without_open_pauses(items)


def _again(life: CommandStatus) -> ScheduledCommand:
    assert life.settled is not None
    command, step = life.command, life.settled.step or 0
    if isinstance(command.intent, SaveCheckpoint):
        name = (life.settled.after or {}).get("checkpoint")
        command = command.model_copy(update={"intent": command.intent.model_copy(update={"name": name})})
    return ScheduledCommand(
        command=command.model_copy(update={"based_on_seq": None}), step=step, training=life.training
    )


def _place(items: Sequence[ScheduledCommand], saved: CheckpointCommitted) -> int:
    """Return the index for a save: after all commands decided before it, before the others of its step."""
    before = [at for at, item in enumerate(items) if item.command.uuid in saved.decided_here]
    if before:
        return before[-1] + 1
    here = (saved.training, saved.step)
    return next((at for at, item in enumerate(items) if _where(item) >= here), len(items))


def _save(saved: CheckpointCommitted, rollback: UUID) -> ScheduledCommand:
    intent = SaveCheckpoint(label=saved.label, name=saved.checkpoint)
    command = Command(uuid=uuid5(rollback, saved.checkpoint), author="replay", intent=intent)
    return ScheduledCommand(command=command, step=saved.step, training=saved.training)


def _where(item: ScheduledCommand) -> tuple[int, int]:
    return item.training, item.step


def _without_open_pauses(items: list[ScheduledCommand]) -> list[ScheduledCommand]:
    """Drop pauses that were not ended at their own step: they would hold the new run for ever."""
    kept: list[ScheduledCommand] = []
    for at, item in enumerate(items):
        ends = (Resume, Stop, Rollback)
        rest = (later for later in items[at + 1 :] if isinstance(later.command.intent, ends))
        ending = next(rest, None)
        if isinstance(item.command.intent, Pause) and (ending is None or _where(ending) != _where(item)):
            continue
        kept.append(item)
    return kept
