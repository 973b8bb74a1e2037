"""Views of a run's state for people: pure functions from `RunState` to messages."""

from collections.abc import Mapping, Sequence
from itertools import islice
from uuid import UUID

from control_plane.api.messages import (
    AlertStage,
    AlertView,
    BranchView,
    CommandView,
    Intervention,
    Progress,
    RecoveryView,
    Restarting,
    Snapshot,
    Trajectories,
    Trajectory,
)
from control_plane.core.model.branch_tree import Branch
from control_plane.core.model.health import AlertStatus
from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.data import AddShards
from control_plane.core.model.records import MAIN
from control_plane.core.model.state import CommandStatus, GenerationFailure, RunState
from control_plane.core.model.values import MAX_FIRST
from control_plane.core.rules.branch_rules import first_uuid
from control_plane.core.rules.crash_loop import ALERT_AFTER, Attempt, failures_without_a_new_step, wait_s
from control_plane.core.rules.reflexes import AUTHOR, TAGS, uuid_of
from control_plane.server.agent_views import agent_of

MAX_RECOVERIES_IN_SNAPSHOT = 10
MAX_COMMANDS_IN_SNAPSHOT = 50
MAX_ALERTS_IN_SNAPSHOT = 50
"""A snapshot is for people; the journal holds the rest."""

MAX_URGENT_ALERTS_IN_SNAPSHOT = 200
"""Of those that need attention, one a kind and layer or rank: a run of hundreds of ranks may have thousands."""


def _has_brought_records(life: CommandStatus) -> bool:
    """Return whether a command is told with the data: programs send records all day, which would hide all others."""
    return isinstance(life.command.intent, AddShards) and life.status == "applied"


def view_of(life: CommandStatus) -> CommandView:
    """Return the view of one command."""
    return CommandView(
        command=life.command,
        what=life.command.describe(),
        status=life.status,
        accepted_seq=life.accepted_seq,
        accepted_at=life.accepted_at,
        settled=life.settled,
        settled_at=life.settled_at,
        branch=life.branch,
    )


def snapshot_of(
    state: RunState,
    latest: dict[str, float],
    *,
    progress: Progress | None,
    progress_age_s: float | None,
    failed_s_ago: float = 0.0,
    proposed_s_ago: Mapping[UUID, float] | None = None,
) -> Snapshot:
    """Return the run's state as of the journal and rank 0's last report, `progress`, `progress_age_s` seconds ago."""
    generation = state.generation
    # While a run is being taken to another branch, nothing of the previous branch is current.
    leaves = state.switching and state.closed is None
    progress = None if leaves else progress
    at_work = state.closed is not None or state.listens
    newest = (life for life in reversed(state.commands.values()) if not _has_brought_records(life))
    lives = list(islice(newest, MAX_COMMANDS_IN_SNAPSHOT))[::-1]
    ended = state.closed or (None if state.is_resumed else state.ended)
    facts = generation.facts if generation else {}
    step = max(state.step, progress.step if progress else 0)
    step = state.tree.reached.get(state.tree.head, 0) if leaves else step
    return Snapshot(
        run=state.run,
        name=state.name,
        status=state.status,
        seq=state.seq,
        term=state.term,
        generation=state.generation_number,
        created_at=state.created_at,
        owner=state.owner,
        step=step,
        total_steps=generation.total_steps if generation else 0,
        phase="ended" if ended else (progress.phase if progress else None),
        steps_per_s=progress.steps_per_s if progress and at_work else None,
        progress_age_s=progress_age_s,
        ranks=generation.ranks if generation is not None and at_work else (),
        knobs=state.tree.knobs_of.get(state.tree.head, {}) if leaves else state.knobs,
        knob_facts=facts.get("knobs", {}),
        limits=state.limits,
        facts={name: value for name, value in facts.items() if name != "knobs"},
        latest=latest,
        commands=tuple(view_of(life) for life in lives),
        checkpoints=tuple(state.checkpoints.existing),
        recoveries=tuple(_recovery_of(state, failure) for failure in state.failures[-MAX_RECOVERIES_IN_SNAPSHOT:]),
        reason=ended.reason if ended else None,
        restarting=_restarting(state, failed_s_ago),
        alerts=_alerts_in_snapshot(state, step),
        reflexes=tuple(state.reflexes),
        agent=agent_of(state, proposed_s_ago or {}),
        mixture=state.data.mixture,
        sources_added=state.data.added,
        attempts=_attempts(state),
        branch=state.tree.head,
        branches=tuple(_branch_of(state, branch, progress) for branch in state.tree.branches.values()),
        parent=state.parent,
    )


def alerts_of(state: RunState, step: int, only: Sequence[AlertStatus] | None = None) -> list[AlertView]:
    """Return alerts of the run, all of them or `only` these, oldest first, as they are at step `step`."""
    answers: dict[str, list[UUID]] = {}
    for uuid, life in state.commands.items():
        if life.command.author.startswith(AUTHOR):
            answers.setdefault(life.command.author, []).append(uuid)
    wanted = state.alerts.by_seq.values() if only is None else only
    return [_alert_of(state, status, step, answers) for status in wanted]


def _alert_of(state: RunState, status: AlertStatus, step: int, answers: Mapping[str, Sequence[UUID]]) -> AlertView:
    record, alert = status.record, status.alert
    seen = state.commands[status.acknowledged].command if status.acknowledged else None
    stage = _stage_of(state, status, step)
    own = {uuid_of(state, alert, tag) for tag in TAGS} if record.reflex and not record.declined else set()
    return AlertView(
        seq=status.seq,
        alert=alert,
        stage=stage,
        raised_at=status.raised_at,
        current=alert.branch == state.tree.head,
        cleared_step=status.cleared.step if status.cleared else None,
        cleared_at=status.cleared_at,
        acknowledged_by=seen.author if seen else None,
        note=getattr(seen.intent, "note", None) if seen else None,
        snoozed_until=state.alerts.snoozed.get((alert.kind, alert.subject)) if stage == "snoozed" else None,
        reflex=record.reflex,
        declined=record.declined,
        commands=tuple(uuid for uuid in answers.get(AUTHOR + record.reflex, ()) if uuid in own),
    )


def _stage_of(state: RunState, status: AlertStatus, step: int) -> AlertStage:
    if status.cleared:
        return "cleared"
    if status.acknowledged:
        return "acknowledged"
    return "snoozed" if state.alerts.is_snoozed(status.alert, step) else "open"


def _alerts_in_snapshot(state: RunState, step: int) -> tuple[AlertView, ...]:
    """Return the alerts that need attention, and the newest others, oldest first."""
    urgent: list[AlertStatus] = []
    others: list[AlertStatus] = []
    # From the newest on: a run of months has thousands, and a snapshot is asked for all the time.
    for status in reversed(state.alerts.by_seq.values()):
        if status.alert.branch == state.tree.head and _stage_of(state, status, step) == "open":
            if len(urgent) < MAX_URGENT_ALERTS_IN_SNAPSHOT:
                urgent.append(status)
        elif len(others) < MAX_ALERTS_IN_SNAPSHOT:
            others.append(status)
    return tuple(alerts_of(state, step, sorted([*urgent, *others], key=lambda status: status.seq)))


def _restarting(state: RunState, failed_s_ago: float) -> Restarting | None:
    row = failures_without_a_new_step(state) if state.has_failed and state.closed is None else ()
    if not row:
        return None
    waits_s = wait_s(state)
    return Restarting(
        failures=len(row),
        wait_s=waits_s,
        left_s=round(max(0.0, waits_s - failed_s_ago), 3),
        alert=len(row) >= ALERT_AFTER,
        reason=row[-1].cause,
    )


def _attempts(state: RunState) -> tuple[Attempt, ...]:
    """Return the attempts of a run in a crash loop, or closed by one. A single failure is shown as a recovery."""
    failed = state.closed is not None and state.closed.ending == "failed"
    row = failures_without_a_new_step(state) if state.has_failed or failed else ()
    return row[-MAX_RECOVERIES_IN_SNAPSHOT:] if len(row) > 1 else ()


def _branch_of(state: RunState, branch: Branch, progress: Progress | None) -> BranchView:
    own = [each for each in state.checkpoints.usable() if each.branch == branch.name]
    rollback = state.commands.get(branch.rollback) if branch.rollback else None
    lives = [life for life in state.commands.values() if life.status == "applied" and life.branch == branch.name]
    trained = state.generation is not None and state.generation.branch == branch.name
    return BranchView(
        branch=branch.name,
        parent=branch.parent,
        checkpoint=branch.checkpoint,
        step=branch.step,
        reached_step=max(
            state.tree.reached.get(branch.name, branch.step), progress.step if progress and trained else 0
        ),
        commands=len(lives),
        first=_first_of(rollback) if rollback else (),
        newest_checkpoint=max(own, key=lambda each: each.step).checkpoint if own else None,
        head=branch.name == state.tree.head,
        origin=branch.origin or (state.parent if branch.name == MAIN and _is_fork(state) else None),
    )


def _is_fork(state: RunState) -> bool:
    return state.parent is not None and state.parent.kind == "fork"


def _first_of(rollback: CommandStatus) -> tuple[str, ...]:
    intent = rollback.command.intent
    return tuple(change.describe() for change in intent.first) if isinstance(intent, Rollback) else ()


def _recovery_of(state: RunState, failure: GenerationFailure) -> RecoveryView:
    restarted, recovered = failure.restarted, failure.recovered
    return RecoveryView(
        generation=failure.record.generation,
        lost_at=failure.failed_at,
        step=failure.record.step,
        silent_s=failure.record.silent_s,
        deaths=failure.record.deaths,
        checkpoint=restarted.checkpoint if restarted else None,
        resumed_step=restarted.step if restarted else None,
        world_size=restarted.world_size if restarted else None,
        lost_steps=recovered.lost_steps if recovered else None,
        phases_s=recovered.phases_s if recovered else {},
        branch=state.tree.of_generation.get(failure.record.generation, MAIN),
    )


def trajectories_of(state: RunState, progress: Progress | None) -> Trajectories:
    """Return every branch with its interventions; the current one up to rank 0's last report, `progress`."""
    return Trajectories(
        run=state.run,
        status=state.status,
        head=state.tree.head,
        total_steps=state.generation.total_steps if state.generation else 0,
        parent=state.parent,
        branches=tuple(_trajectory_of(state, branch, progress) for branch in state.tree.branches.values()),
        checkpoints=tuple(state.checkpoints.usable()),
    )


def _trajectory_of(state: RunState, branch: Branch, progress: Progress | None) -> Trajectory:
    firsts = {first_uuid(branch.rollback, place) for place in range(MAX_FIRST)} if branch.rollback else set()
    changes = (life for life in state.commands.values() if life.command.intent.changes_training)
    applied = (life for life in changes if life.status == "applied" and life.branch == branch.name)
    in_order = sorted(applied, key=lambda life: life.settled_seq or 0)
    return Trajectory(
        branch=_branch_of(state, branch, progress),
        knobs=state.tree.knobs_of.get(branch.name, {}),
        interventions=tuple(_intervention_of(life, life.command.uuid in firsts) for life in in_order),
    )


def _intervention_of(life: CommandStatus, first: bool) -> Intervention:
    assert life.settled is not None, "it was applied"
    return Intervention(
        uuid=life.command.uuid,
        step=life.settled.step or 0,
        what=life.command.describe(),
        author=life.command.author,
        reason=life.command.reason,
        first=first,
        before=life.settled.before or {},
        after=life.settled.after or {},
    )
