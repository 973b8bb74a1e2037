"""Recovery after a failure: the resume point, and the commands to repeat.

    history = resume_point(state)                                   the control server, from its journal
    replay = replay_after(history, manifest.settled)                every rank, when it has chosen a checkpoint

Invariant: after a failure, history is repeated. A command that was applied after the checkpoint is applied again at the
step where it first took effect; until then no new command is taken, so that the newest value stays the newest.
Commands that do not change the training (a save, an evaluation, a rejected one) are not repeated.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from control_plane.core.boundary import Repeat
from control_plane.core.model.branch_tree import LineagePart, belongs, candidates, lineage
from control_plane.core.model.commands import Command, Pause, Resume, Stop
from control_plane.core.model.health import IDENTITY, Cleared
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import MAIN, CheckpointCommitted, CommandSettled, GenerationRecovered
from control_plane.core.model.state import CommandStatus, RunState
from control_plane.core.rules.branch_rules import ScheduledCommand
from control_plane.core.rules.trainings import which_training

PHASES = ("detect", "re-form", "load", "first step")
"""The phases of a recovery: from the last sign of life to the detection, to the new ranks' first line, to a restored
state, to the end of the first new step."""

MAX_CANDIDATES = 16
"""Checkpoints that a start may try. If more are damaged, a person has to look."""


class Decided(Message):
    """A settled command with its outcome. `elsewhere`: known for idempotence, but without effect on this branch."""

    command: Command
    outcome: CommandSettled
    elsewhere: bool = False


MAX_OPEN_ALERTS = 512
"""Newest alerts that a start is told of; a monitor has at most one of each kind and layer or rank."""


class ResumePoint(Message):
    """Starting information for new trainers, from the journal.

    `branch`: the branch to train. `candidates`: checkpoints to try, best first; if none verifies, training starts at
    step 0. `decided`: every settled command in order. `scheduled`: commands for known steps after that. `replays`: they
    are another run's. `training`: all of it belongs to this training of the script. `stopped`: the run was stopped in
    an earlier training. `alerts`: those of this branch and training that have not cleared. `note`: for the log.
    """

    generation: int
    candidates: tuple[CheckpointCommitted, ...]
    decided: tuple[Decided, ...]
    reached_step: int
    branch: str = MAIN
    branched_seq: int = 0
    scheduled: tuple[ScheduledCommand, ...] = ()
    replays: bool = False
    training: int = 1
    stopped: bool = False
    alerts: tuple[Cleared, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Initial state of a replica after a restore: decisions contained in the checkpoint, and commands to repeat."""

    ledger: dict[UUID, CommandSettled]
    repeats: tuple[Repeat, ...]
    paused: bool
    stopping: bool


def resume_point(state: RunState, call: int = 1, fingerprint: str = "") -> ResumePoint:
    """Return the resume point for the training that the script's `call`-th `train()` starts.

    Raises `Refused` if that training cannot be identified, see `which_training`.
    """
    training, note = which_training(state, call, fingerprint)
    best_first, line = (
        candidates(state.tree, state.checkpoints, state.tree.head, training),
        list(lineage(state.tree, state.checkpoints, state.tree.head, training)),
    )
    over_seq = max(_last_stop_that_is_over(state), state.tree.branched_seq)
    settled = (life for life in state.commands.values() if life.settled is not None)
    in_order = sorted(settled, key=lambda life: life.settled_seq or 0)
    return ResumePoint(
        generation=state.generation_number,
        candidates=tuple(best_first[:MAX_CANDIDATES]),
        decided=tuple(
            Decided(
                command=life.command,
                outcome=life.settled,
                elsewhere=_is_over(life, over_seq) or life.training != training or not _is_of(line, life),
            )
            for life in in_order
            if life.settled is not None
        ),
        reached_step=state.reached_step,
        branch=state.tree.head,
        branched_seq=state.tree.branched_seq,
        scheduled=_scheduled(state, training),
        replays=_replays(state),
        training=training,
        stopped=any(_stopped_before(state, life, training) for life in in_order if not _is_over(life, over_seq)),
        alerts=_open_alerts(state, training),
        note=note,
    )


def _open_alerts(state: RunState, training: int) -> tuple[Cleared, ...]:
    """Return the identities of the alerts that have not cleared, each with the step that raised it."""
    alerts = [status.alert for status in state.alerts.by_seq.values() if status.cleared is None]
    own = [alert for alert in alerts if alert.branch == state.tree.head and alert.training == training]
    return tuple(Cleared.model_validate(alert.model_dump(include=IDENTITY)) for alert in own[-MAX_OPEN_ALERTS:])


def _replays(state: RunState) -> bool:
    return state.parent is not None and state.parent.kind == "replay"


def _is_over(life: CommandStatus, over_seq: int) -> bool:
    return isinstance(life.command.intent, Pause | Resume | Stop) and (life.settled_seq or 0) <= over_seq


def _stopped_before(state: RunState, life: CommandStatus, training: int) -> bool:
    """Return whether this is a stop of an earlier training in this history: it stops all later ones, too."""
    if not isinstance(life.command.intent, Stop) or life.status != "applied" or life.training >= training:
        return False
    return _is_of(list(lineage(state.tree, state.checkpoints, state.tree.head, life.training)), life)


def _is_of(line: Sequence[LineagePart], life: CommandStatus) -> bool:
    assert life.settled is not None
    return belongs(line, life.branch, life.settled.step or 0, life.settled_seq or 0, life.command.uuid)


def _scheduled(state: RunState, training: int) -> tuple[ScheduledCommand, ...]:
    """Return the commands scheduled for the current branch, up to the rollback that ends it, if any.

    Initial changes of the branch come first, though in a replay the later commands were accepted before them. Initial
    changes of another branch wait until the run is switched to it.
    """
    waiting = [state.commands[uuid] for uuid in state.pending if uuid in state.scheduled]
    own = [life for life in waiting if life.branch == state.tree.head]
    if _replays(state) and state.tree.head != MAIN:
        own += [life for life in waiting if life.branch == MAIN]
    scheduled: list[ScheduledCommand] = []
    for life in own:
        if life.training == training:
            step = state.scheduled[life.command.uuid]
            scheduled.append(ScheduledCommand(command=life.command, step=step, training=training))
        if isinstance(life.command.intent, Rollback):
            break
    return tuple(scheduled)


def _last_stop_that_is_over(state: RunState) -> int:
    """Return the seq of the last stop after which the run was resumed; 0 if there is none.

    Repeating it would stop the run again. A pause before it was ended by it, and must not hold the run either.
    """
    stops = (life for life in state.commands.values() if isinstance(life.command.intent, Stop))
    applied = (life.settled_seq or 0 for life in stops if life.status == "applied")
    return max((seq for seq in applied if seq < state.resumed_seq), default=0)


def replay_after(
    decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[ScheduledCommand] = ()
) -> Replay:
    """Split the history at a checkpoint into decisions contained in it and commands to repeat.

    Args:
        contained: uuids, as text, of the commands that the checkpoint's state contains.
        scheduled: commands for known steps; they come after all repeats.
    """
    ledger: dict[UUID, CommandSettled] = {}
    repeats: list[Repeat] = []
    paused = stopping = False
    for each in decided:
        intent = each.command.intent
        if str(each.command.uuid) in contained:
            if not each.elsewhere and each.outcome.status == "applied" and isinstance(intent, Pause | Resume | Stop):
                paused, stopping = isinstance(intent, Pause), stopping or isinstance(intent, Stop)
        elif not each.elsewhere and _is_to_be_repeated(each):
            repeats.append(Repeat(each.command, each.outcome.step or 0))
            continue
        ledger[each.command.uuid] = each.outcome
    repeats += [Repeat(each.command, each.step) for each in scheduled]
    return Replay(ledger, tuple(repeats), paused, stopping)


def _is_to_be_repeated(each: Decided) -> bool:
    return each.command.intent.changes_training and each.outcome.status == "applied" and each.outcome.step is not None


def recovery_record(
    state: RunState, *, step: int, reform_s: float, loaded_s: float, first_step_s: float
) -> GenerationRecovered:
    """Return the record of the recovery that ended with `step`; the other arguments are its `PHASES` in seconds.

    Clocks of two nodes may differ: no phase is negative.
    """
    failure = state.failures[-1] if state.failures else None
    resumed_step = state.generation.step if state.generation else 0
    seconds = (failure.record.silent_s if failure else 0.0, max(0.0, reform_s), loaded_s, first_step_s)
    return GenerationRecovered(
        generation=state.generation_number,
        step=step,
        lost_steps=max(0, failure.record.step - resumed_step) if failure else 0,
        phases_s={phase: round(value, 3) for phase, value in zip(PHASES, seconds, strict=True)},
    )
