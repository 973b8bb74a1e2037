"""What people are shown of a run's state: pure functions from the fold to `handle`'s words."""

from control_plane.core.state import CommandLife, RunState
from control_plane.handle import CommandView, Progress, Snapshot

MAX_COMMANDS_IN_SNAPSHOT = 50
"""A snapshot is for people; the journal has the rest."""


def view_of(life: CommandLife) -> CommandView:
    """One command and what has become of it."""
    return CommandView(
        command=life.command,
        what=life.command.describe(),
        status=life.status,
        accepted_seq=life.accepted_seq,
        accepted_at=life.accepted_at,
        settled=life.settled,
        settled_at=life.settled_at,
    )


def snapshot_of(
    state: RunState, latest: dict[str, float], progress: Progress | None, progress_age_s: float | None
) -> Snapshot:
    """The run as the journal and the last word of rank 0 (`progress`, so many seconds ago) have it."""
    generation = state.generation
    lives = list(state.commands.values())[-MAX_COMMANDS_IN_SNAPSHOT:]
    ended = state.closed or state.ended
    return Snapshot(
        run=state.run,
        name=state.name,
        status=state.status,
        seq=state.seq,
        term=state.term,
        generation=state.generation_number,
        created_at=state.created_at,
        step=max(state.step, progress.step if progress else 0),
        total_steps=generation.total_steps if generation else 0,
        phase="ended" if ended else (progress.phase if progress else None),
        steps_per_s=progress.steps_per_s if progress else None,
        progress_age_s=progress_age_s,
        ranks=generation.ranks if generation else (),
        knobs=state.knobs,
        facts=generation.facts if generation else {},
        latest=latest,
        commands=tuple(view_of(life) for life in lives),
        checkpoints=tuple(state.checkpoints),
        reason=ended.reason if ended else None,
    )
