"""After a death: where to resume, and what to do again.

    history = resume_point(state)                                   the control server, from its journal
    replay = replay_after(history, manifest.settled)                every rank, when it has chosen a checkpoint

Law: after a crash, history repeats itself. A command that was applied after the checkpoint is applied again at the
step where it first took effect; until that is done no new command is taken, so that the last word stays the last.
What changes nothing in the training (a save, an evaluation, a refusal) is not repeated.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from control_plane.core.boundary import Repeat
from control_plane.core.model.branch_tree import Stretch, belongs, candidates, lineage
from control_plane.core.model.commands import Command, Pause, Resume, Stop, Words
from control_plane.core.model.intents import CHANGES_TRAINING, Rollback
from control_plane.core.model.records import MAIN, CheckpointCommitted, CommandSettled
from control_plane.core.model.state import CommandLife, RunState
from control_plane.core.rules.branch_rules import Scheduled
from control_plane.core.rules.trainings import which_training

PHASES = ("detect", "re-form", "load", "first step")
"""The phases of a recovery: from the last sign of life to the discovery, to the new ranks' first line, to a restored
state, to the end of the first new step."""

MAX_CANDIDATES = 16
"""Checkpoints that a start may try. With more than that damaged, somebody has to look."""


class Decided(Words):
    """A command with its outcome. `elsewhere`: it is over, or of a branch that is not this one's history: it is known,
    and has no effect here."""

    command: Command
    outcome: CommandSettled
    elsewhere: bool = False


class ResumePoint(Words):
    """What the trainers must know before they start.

    `branch` is the one to train. `candidates` are the checkpoints to try, the newest first; without any, or when none
    verifies, training begins at the beginning. `decided` is every settled command in the order of settlement, and
    `scheduled` what is to be done at certain steps after that. `replays`: these are what another run did. All of it is
    of one `training` of the script. `stopped`: with an earlier one of them the whole run was. `note` is for the log.
    """

    generation: int
    candidates: tuple[CheckpointCommitted, ...]
    decided: tuple[Decided, ...]
    reached_step: int
    branch: str = MAIN
    branched_seq: int = 0
    scheduled: tuple[Scheduled, ...] = ()
    replays: bool = False
    training: int = 1
    stopped: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replica is given before its first step: the decisions that its state contains, and those to repeat."""

    ledger: dict[UUID, CommandSettled]
    repeats: tuple[Repeat, ...]
    paused: bool
    stopping: bool


def resume_point(state: RunState, call: int = 1, fingerprint: str = "") -> ResumePoint:
    """The run's history, as far as new trainers need it for what the script's `call`-th `train()` begins.

    Raises `Refused` if it cannot be told which training that is.
    """
    training, note = which_training(state, call, fingerprint)
    best_first, line = candidates(state, state.head, training), list(lineage(state, state.head, training))
    over_seq = max(_last_stop_that_is_over(state), state.branched_seq)
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
        branch=state.head,
        branched_seq=state.branched_seq,
        scheduled=_scheduled(state, training),
        replays=_replays(state),
        training=training,
        stopped=any(_stopped_before(state, life, training) for life in in_order if not _is_over(life, over_seq)),
        note=note,
    )


def _replays(state: RunState) -> bool:
    return state.parent is not None and state.parent.kind == "replay"


def _is_over(life: CommandLife, over_seq: int) -> bool:
    return isinstance(life.command.intent, Pause | Resume | Stop) and (life.settled_seq or 0) <= over_seq


def _stopped_before(state: RunState, life: CommandLife, training: int) -> bool:
    """Whether this stop ended an earlier training of this history: who stops a run means all that is to come."""
    if not isinstance(life.command.intent, Stop) or life.status != "applied" or life.training >= training:
        return False
    return _is_of(list(lineage(state, state.head, life.training)), life)


def _is_of(line: Sequence[Stretch], life: CommandLife) -> bool:
    assert life.settled is not None
    return belongs(line, life.branch, life.settled.step or 0, life.settled_seq or 0, life.command.uuid)


def _scheduled(state: RunState, training: int) -> tuple[Scheduled, ...]:
    """What these trainers do at certain steps, up to the rollback, if there is one, that ends their branch.

    What a branch begins with comes first, though in a replay what comes later was known before. What another branch
    was to begin with waits for somebody to go on with that one.
    """
    waiting = [state.commands[uuid] for uuid in state.pending if uuid in state.scheduled]
    own = [life for life in waiting if life.branch == state.head]
    if _replays(state) and state.head != MAIN:
        own += [life for life in waiting if life.branch == MAIN]
    found: list[Scheduled] = []
    for life in own:
        if life.training == training:
            step = state.scheduled[life.command.uuid]
            found.append(Scheduled(command=life.command, step=step, training=training))
        if isinstance(life.command.intent, Rollback):
            break
    return tuple(found)


def _last_stop_that_is_over(state: RunState) -> int:
    """The seq of the last stop after which somebody resumed the run; 0 if there is none.

    To repeat it would stop the run again. A pause before it was ended by it, and must not hold the run either.
    """
    stops = (life for life in state.commands.values() if isinstance(life.command.intent, Stop))
    applied = (life.settled_seq or 0 for life in stops if life.status == "applied")
    return max((seq for seq in applied if seq < state.resumed_seq), default=0)


def replay_after(decided: Sequence[Decided], contained: Collection[str], scheduled: Sequence[Scheduled] = ()) -> Replay:
    """Split the history at a checkpoint. `contained`: the uuids (as text) that the checkpoint's state contains.

    What is `scheduled` comes after all that has to be repeated.
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
    changes = isinstance(each.command.intent, CHANGES_TRAINING)
    return changes and each.outcome.status == "applied" and each.outcome.step is not None
