"""A recorded run as commands for a new one: every command at the step where it took effect, rollbacks included.

    schedule = recorded(entries, until_step)

What a run did is parted by its rollbacks. In each part the commands that changed something are done again in the order
in which they were decided, whatever was lost and repeated meanwhile: after a loss history repeats itself, so that the
run which nothing happened to did the same. The checkpoints to which the run was rolled back are saved again, under
their names, each at its place between the commands of its step. Other checkpoints are not: they change nothing. What
the run was given, or adopted from other runs, the new one is given, too, at its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from control_plane.core.model.commands import Command, Pause, Resume, SaveCheckpoint, Stop
from control_plane.core.model.errors import Conflict
from control_plane.core.model.intents import CHANGES_TRAINING, Evaluate, Rollback
from control_plane.core.model.records import BranchResumed, BranchStarted, CheckpointCommitted, Entry, GenerationStarted
from control_plane.core.model.state import CommandLife, RunState, fold
from control_plane.core.rules.branch_rules import Scheduled, first_uuid

REPLAYED = (*CHANGES_TRAINING, Evaluate, SaveCheckpoint, Rollback)
"""What took effect on the ranks. What was refused, cancelled, or done by the control server alone, changed nothing."""


@dataclass(slots=True)
class Part:
    """What happened between two rollbacks: commands that took effect, and checkpoints, by generation."""

    lives: list[CommandLife] = field(default_factory=list)
    saved: list[CheckpointCommitted] = field(default_factory=list)


def recorded(entries: Sequence[Entry], until_step: int | None = None) -> tuple[Scheduled, ...]:
    """The commands of a run with their steps. With `until_step` the new run stops when it gets there first.

    Raises `Conflict` if the run never began, or if a checkpoint to which it was rolled back is not known any more.
    """
    state = fold(list(entries))
    if state.generation is None:
        raise Conflict(f"run {state.run} never began to train: there is nothing to do again")
    wanted = _bases(state)
    items = [item for part in _parts(state, entries) for item in _in_order(part, wanted)]
    end = until_step if until_step is not None else _open_end(state)
    if until_step is not None:
        late = next((at for at, item in enumerate(items) if item.step > until_step), len(items))
        items = items[:late]
    if end is not None and not (items and isinstance(items[-1].command.intent, Stop)):
        stop = Command(uuid=uuid5(UUID(int=end), state.run), author="replay", intent=Stop())
        items.append(Scheduled(command=stop, step=end))
    return tuple(items)


def _open_end(state: RunState) -> int | None:
    """Where a run stops that does again what one did that has no end of its own, or not yet."""
    ended = state.closed is not None and state.closed.ending in ("finished", "stopped")
    reached = state.reached.get(state.head, state.step)
    total_steps = state.generation.total_steps if state.generation else 0
    return None if ended or reached >= total_steps else reached


def _bases(state: RunState) -> dict[str, UUID]:
    """The checkpoints to which the run was rolled back, with the rollback that went there first."""
    wanted: dict[str, UUID] = {}
    known = {each.checkpoint for each in state.checkpoints}
    for branch in state.branches.values():
        if branch.checkpoint is None or branch.rollback is None:
            continue
        if branch.checkpoint not in known:
            raise Conflict(f"run {state.run} was rolled back to {branch.checkpoint}, which is not known any more")
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
        if isinstance(life.command.intent, REPLAYED):
            began = sum(branch_seq < (life.settled_seq or 0) for branch_seq in _turns(entries))
            parts[part_of.get(outcome.generation or -1, began)].lives.append(life)
    return parts


def _turns(entries: Sequence[Entry]) -> list[int]:
    return [entry.seq for entry in entries if isinstance(entry.record, BranchStarted | BranchResumed)]


def _first_uuids(state: RunState) -> set[UUID]:
    """What branches began with: the new run's own rollbacks bring it along."""
    rollbacks = (life.command for life in state.commands.values())
    return {
        first_uuid(command.uuid, place)
        for command in rollbacks
        if isinstance(command.intent, Rollback)
        for place in range(len(command.intent.first))
    }


def _in_order(part: Part, wanted: dict[str, UUID]) -> list[Scheduled]:
    items = [_again(life) for life in part.lives]
    # A save is settled when it has ended, which may be steps later; all else in the order of its decision.
    items.sort(key=_where)
    asked = {item.command.intent.name for item in items if isinstance(item.command.intent, SaveCheckpoint)}
    for saved in part.saved:
        if saved.checkpoint in wanted and saved.checkpoint not in asked:
            items.insert(_place(items, saved), _save(saved, wanted[saved.checkpoint]))
    return _without_open_pauses(items)


def _again(life: CommandLife) -> Scheduled:
    assert life.settled is not None
    command, step = life.command, life.settled.step or 0
    if isinstance(command.intent, SaveCheckpoint):
        name = (life.settled.after or {}).get("checkpoint")
        command = command.model_copy(update={"intent": command.intent.model_copy(update={"name": name})})
    return Scheduled(command=command.model_copy(update={"based_on_seq": None}), step=step, training=life.training)


def _place(items: Sequence[Scheduled], saved: CheckpointCommitted) -> int:
    """After all that was decided before it was saved, and before all else of its step."""
    before = [at for at, item in enumerate(items) if item.command.uuid in saved.decided_here]
    if before:
        return before[-1] + 1
    here = (saved.training, saved.step)
    return next((at for at, item in enumerate(items) if _where(item) >= here), len(items))


def _save(saved: CheckpointCommitted, rollback: UUID) -> Scheduled:
    intent = SaveCheckpoint(label=saved.label, name=saved.checkpoint)
    command = Command(uuid=uuid5(rollback, saved.checkpoint), author="replay", intent=intent)
    return Scheduled(command=command, step=saved.step, training=saved.training)


def _where(item: Scheduled) -> tuple[int, int]:
    return item.training, item.step


def _without_open_pauses(items: list[Scheduled]) -> list[Scheduled]:
    """A pause that nobody ended at its own step would hold the new run for ever."""
    kept: list[Scheduled] = []
    for at, item in enumerate(items):
        ends = (Resume, Stop, Rollback)
        rest = (later for later in items[at + 1 :] if isinstance(later.command.intent, ends))
        ending = next(rest, None)
        if isinstance(item.command.intent, Pause) and (ending is None or _where(ending) != _where(item)):
            continue
        kept.append(item)
    return kept
