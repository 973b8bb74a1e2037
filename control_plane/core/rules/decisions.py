"""Decisions: pure functions from (state, request) to the records to append, or an error.

Idempotent: an empty list means that the request is already in the journal, so a retry gets the answer of the first try.
After an error nothing has changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, NotFound, RunEnded
from control_plane.core.model.intents import Cancel, Stop
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import (
    MAIN,
    CommandAccepted,
    CommandRepeated,
    CommandSettled,
    Death,
    Ending,
    GenerationEnded,
    GenerationEnding,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    RankPlace,
    Readback,
    Record,
    RefusedCheckpoint,
    RunClosed,
    RunCreated,
    RunResumed,
    TermStarted,
)
from control_plane.core.model.state import CommandStatus, RunState
from control_plane.core.rules.admission import (
    check_intent,
    check_limits,
    check_open,
    check_queue,
    check_text,
    check_view,
    stop_is_pending,
)
from control_plane.core.rules.agent.proposals import (
    ABOUT_AGENT,
    check_agent_mode,
    close_proposals,
    settle_agent_command,
)
from control_plane.core.rules.alert_rules import settle_alert_command
from control_plane.core.rules.branch_rules import (
    AdoptedCheckpoint,
    Origin,
    begin,
    branch_off,
    is_same_request,
    resolve_trusted,
    settle_rollback,
)
from control_plane.core.rules.checkpoint_rules import adopt, cancel_command, check_adoption, keep_or_delete

NEVER: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class GenerationStart:
    """Announcement of a new generation of trainers, ready for its first step."""

    uuid: UUID
    ranks: tuple[RankPlace, ...]
    step: int
    total_steps: int
    knobs: Readback
    facts: Readback
    checkpoint: str | None = None
    refused: tuple[RefusedCheckpoint, ...] = ()
    retention: Readback = field(default_factory=dict)
    branch: str = MAIN
    # The `branched_seq` of the `ResumePoint` that the trainers started from.
    branched_seq: int | None = None
    training: int = 1
    training_sha256: str = ""


def create(state: RunState, created: RunCreated, origin: Origin | None = None) -> list[Record]:
    """Return a new run's first records. Raises `Conflict` if the journal belongs to another run or configuration."""
    if state.seq == 0 or not state.run:
        if origin is None:
            return [created]
        # A replay repeats the commands of the other run's reflexes and agent, and has none of its own.
        again: dict[str, Any] = {"reflexes": {}, "agent": None} if origin.parent.kind == "replay" else {}
        return [created.model_copy(update={"parent": origin.parent, **again}), *begin(origin)]
    if (state.run, state.config_sha256) != (created.run, created.config_sha256):
        raise Conflict(
            f"the journal belongs to run {state.run} with another configuration; choose a new id for a new run",
            run=state.run,
        )
    return []


def start_term(state: RunState, term: int) -> list[Record]:
    """Return the record that begins a control server's term."""
    return [TermStarted(term=term, recovered=state.seq)]


def accept(
    state: RunState,
    command: Command,
    changed_s_ago: Mapping[str, float] = NEVER,
    adopted: AdoptedCheckpoint | None = None,
    *,
    proposed: bool = False,
) -> list[Record]:
    """Accept or reject a command; idempotent by its uuid. A command that needs no ranks is settled at once.

    Args:
        changed_s_ago: seconds since each knob of `state.changed_seq` was changed.
        adopted: the checkpoint that an adoption has copied, see `to_be_adopted`.
        proposed: it comes of a proposal that was answered.

    Raises:
        Conflict: the uuid names another command, the run is not in a state for it, or the sender's view is stale.
        RunEnded: the run is closed or stopping.
        Overloaded: `admission.MAX_PENDING_COMMANDS` are pending.
        NotFound: unknown parameter group, command or checkpoint.
        Invalid: beyond one of the run's limits.
        NotAllowed: the run's agent must propose it.
    """
    known = state.commands.get(command.uuid)
    if known is not None:
        if not is_same_request(known.command, command):
            raise Conflict(f"uuid {command.uuid} is already the command '{known.command.describe()}'")
        return []
    check_text(command)
    if not proposed:
        check_agent_mode(state, command)
    if command.intent.needs_ranks:
        check_open(state)
    command = resolve_trusted(state, command)
    if command.intent.is_queued:
        check_queue(state, command)
    check_view(state, command)
    if command.intent.is_queued:
        check_intent(state, command)
        check_limits(state, command, changed_s_ago)
    settle_now = SETTLED_AT_ONCE.get(command.intent.kind)
    follow = settle_now(state, command, Settling(changed_s_ago, adopted)) if settle_now else []
    return [CommandAccepted(command=command), *follow]


@dataclass(frozen=True, slots=True)
class Settling:
    """Context of the control server's appliers, beside the state and the command."""

    changed_s_ago: Mapping[str, float] = field(default_factory=dict)
    adopted: AdoptedCheckpoint | None = None

    def accept(self, state: RunState, command: Command) -> list[Record]:
        """Accept the command that comes of a proposal. Raises as `accept` does."""
        return accept(state, command, self.changed_s_ago, proposed=True)


def _about_agent(state: RunState, command: Command, settling: Settling) -> list[Record]:
    return settle_agent_command(state, command, settling.accept)


SETTLED_AT_ONCE: Mapping[str, Callable[[RunState, Command, Settling], list[Record]]] = {
    "pin_checkpoint": lambda state, command, _: keep_or_delete(state, command),
    "delete_checkpoint": lambda state, command, _: keep_or_delete(state, command),
    "adopt_checkpoint": lambda state, command, settling: adopt(state, command, settling.adopted),
    "acknowledge_alert": lambda state, command, _: settle_alert_command(state, command),
    "snooze_alert": lambda state, command, _: settle_alert_command(state, command),
    "cancel": lambda state, command, _: cancel_command(state, command),
    "rollback": lambda state, command, _: settle_rollback(state, command),
    **dict.fromkeys(ABOUT_AGENT, _about_agent),
}
"""Appliers of the control server, by kind: the records that follow the acceptance. Other kinds wait for the ranks."""


def to_be_adopted(state: RunState, command: Command) -> str | None:
    """Return the branch for which checkpoint files must be copied before `accept`; None if the command needs none.

    Raises what `accept` would raise, as far as it is known before the copy.
    """
    if not isinstance(command.intent, AdoptCheckpoint) or command.uuid in state.commands:
        return None
    check_text(command)
    check_view(state, command)
    return check_adoption(state, command.intent)


def start_generation(state: RunState, start: GenerationStart) -> list[Record]:
    """Return the record that begins a generation. Idempotent by the start's uuid.

    Raises `RunEnded` if the run is closed, `Conflict` if a later generation has begun.
    """
    if start.uuid in state.starts:
        check_generation(state, state.starts[start.uuid])
        return []
    if state.closed is not None:
        raise RunEnded(f"run {state.run} has {state.closed.ending}; it cannot start again")
    was_told = state.tree.branched_seq if start.branched_seq is None else start.branched_seq
    if start.branch != state.tree.head or was_told != state.tree.branched_seq:
        raise Conflict(
            f"the run was switched to branch {state.tree.head} while trainers were starting on {start.branch}"
        )
    return [
        GenerationStarted(
            uuid=start.uuid,
            generation=state.generation_number + 1,
            ranks=start.ranks,
            step=start.step,
            total_steps=start.total_steps,
            knobs=start.knobs,
            facts=start.facts,
            checkpoint=start.checkpoint,
            refused=start.refused,
            retention=start.retention,
            branch=start.branch,
            training=start.training,
            training_sha256=start.training_sha256,
        )
    ]


def check_generation(state: RunState, generation: int) -> None:
    """Raise `Conflict` unless `generation` is the current one and alive (fencing of stale trainers).

    Reports of a failed generation are rejected, too: its successors may already have read the run's history, and
    would not repeat what were added to it now.
    """
    _check_current(state, generation)
    if not state.listens:
        raise Conflict(f"generation {generation} was declared failed; its reports are ignored", generation=generation)


def _check_current(state: RunState, generation: int) -> None:
    if generation != state.generation_number:
        raise Conflict(
            f"generation {generation} is not the current one ({state.generation_number}); its reports are ignored",
            generation=state.generation_number,
        )


def settle(state: RunState, outcome: CommandSettled) -> list[Record]:
    """Return the records of a command's outcome, as the ranks decided it. Idempotent.

    A command of an earlier generation that this one applied again after a failure is recorded as a repetition.
    Raises `NotFound` for a command that was never accepted, `Conflict` if this generation settled it differently.
    """
    life = state.commands.get(outcome.uuid)
    if life is None:
        raise NotFound(f"run {state.run} never accepted a command {outcome.uuid}")
    before = life.settled
    if before is None:
        return [outcome, *branch_off(state, life.command, outcome)]
    if before.status == outcome.status == "cancelled":
        return []  # by two cancels: one while no trainers ran, one by the next trainers
    if outcome.generation is not None and (before.generation or 0) < outcome.generation:
        return _repeat(life, outcome)
    if (before.status, before.step) != (outcome.status, outcome.step):
        raise Conflict(f"command {outcome.uuid} is already settled as {before.status} at step {before.step}")
    return []


def _repeat(life: CommandStatus, outcome: CommandSettled) -> list[Record]:
    generation = outcome.generation or 0
    if life.repeated is not None and life.repeated.generation >= generation:
        return []
    return [
        CommandRepeated(
            uuid=outcome.uuid,
            generation=generation,
            step=outcome.step or 0,
            status=outcome.status,
            after=outcome.after,
            reason=outcome.reason,
        )
    ]


def fail_generation(
    state: RunState, generation: int, step: int, silent_s: float, deaths: tuple[Death, ...], failure: UUID | None = None
) -> list[Record]:
    """Return the record of a failed generation, as the driver reports it. Idempotent by `failure`, the report's uuid.

    Trainers that fail before they have announced themselves are a failure of their own, and count in the crash loop.

    Args:
        step: the last step that rank 0 reported.
        silent_s: seconds since then.

    Raises `Conflict` for an earlier generation, `RunEnded` if the run is closed.
    """
    if state.closed is not None:
        raise RunEnded(f"run {state.run} has {state.closed.ending}")
    _check_current(state, generation)
    known = any(each.record.loss == failure for each in state.failures) if failure is not None else state.has_failed
    if known or (failure is None and state.generation is None):
        return []
    if state.switching and (state.ended is not None or state.has_failed):
        # The trainers before had left: these failed while switching to the other branch.
        reached = state.tree.reached.get(state.tree.head, 0)
    else:
        saved = (each.step for each in state.checkpoints.existing if each.generation == generation)
        told_by_the_dead = (death.step or 0 for death in deaths)
        reached = max(step, state.step, *saved, *told_by_the_dead)
    silent_s = 0.0 if state.has_failed else max(0.0, silent_s)
    places = state.generation.ranks if state.generation else ()
    nodes: dict[int | None, str] = {place.rank: place.node for place in places}
    deaths = tuple(each if each.node else each.model_copy(update={"node": nodes.get(each.rank, "")}) for each in deaths)
    return [GenerationLost(loss=failure, generation=generation, step=reached, silent_s=silent_s, deaths=deaths)]


def infer_failure(state: RunState, step: int, silent_s: float) -> list[Record]:
    """Return the record of an inferred failure: new trainers ask where to begin, so the previous ones are gone.

    Needed when the driver's own report of the failure was lost.
    """
    if state.closed is not None or state.generation is None or state.ended is not None or not state.listens:
        return []
    return fail_generation(state, state.generation_number, step, silent_s, ())


def recover_generation(state: RunState, recovered: GenerationRecovered) -> list[Record]:
    """Return the record of the first step after a failure. Idempotent."""
    last = state.failures[-1] if state.failures else None
    if last is None or last.restarted is None or last.recovered is not None:
        return []
    if last.restarted.generation != recovered.generation:
        return []  # the trainers that came after the failure left for another branch before they reported
    return [recovered]


def resume_run(state: RunState, author: str, back: bool = False) -> list[Record]:
    """Return the records that resume a run, from where it was or (`back`) for a rollback that follows.

    Raises `Conflict` if it was never started, or has finished and is not rolled back.
    """
    if not state.run:
        raise Conflict("this run has no journal to resume from")
    if state.closed is not None and state.closed.ending == "finished" and not back:
        raise Conflict(f"run {state.run} has finished at step {state.step} and cannot be resumed, only rolled back")
    return [*_too_late_cancels(state), RunResumed(author=author)]


def _too_late_cancels(state: RunState) -> list[Record]:
    """Return rejections of cancels whose target is already settled.

    New trainers would not know a stop from before the resume as settled, and would cancel it.
    """
    rejected: list[Record] = []
    for cancel in state.pending_commands():
        target = state.commands.get(cancel.intent.command) if isinstance(cancel.intent, Cancel) else None
        if target is not None and target.settled is not None:
            reason = f"'{target.command.describe()}' was already {target.status}"
            rejected.append(CommandSettled(uuid=cancel.uuid, status="rejected", reason=reason))
    return rejected


def end_generation(
    state: RunState, generation: int, ending: GenerationEnding, step: int, reason: str | None
) -> list[Record]:
    """Return the record of a generation's end. Undecided commands stay pending for a later generation."""
    check_generation(state, generation)
    if state.ended is not None:
        return []
    return [GenerationEnded(generation=generation, ending=ending, step=step, reason=reason)]


def stop_before_a_start(state: RunState) -> list[Record]:
    """Return the records that close a run on a pending stop, while its trainers wait in the restart backoff."""
    if not stop_is_pending(state):
        return []
    stops = [each.uuid for each in state.pending_commands() if isinstance(each.intent, Stop)]
    settled: list[Record] = [CommandSettled(uuid=uuid, status="applied", step=state.step) for uuid in stops]
    rest = [each for each in close_run(state, "stopped", None) if getattr(each, "uuid", None) not in stops]
    return [*settled, *rest]


def close_run(state: RunState, ending: Ending, reason: str | None) -> list[Record]:
    """Return the records that close a run. Pending commands expire: every accepted command is settled.

    A training that ended well after a stop was applied is `stopped`, whatever the driver reports.
    """
    if state.closed is not None:
        return []
    if ending == "finished" and state.stopping:
        ending = "stopped"
    at = f"the run {ending} at step {state.step} before"
    expired: list[Record] = [
        CommandSettled(
            uuid=uuid, status="expired", generation=state.generation_number, reason=f"{at} this command was applied"
        )
        for uuid in state.pending
    ]
    return [*expired, *close_proposals(state, f"{at} anybody answered"), RunClosed(ending=ending, reason=reason)]
