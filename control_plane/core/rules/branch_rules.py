"""Rules for branches: rollback targets, records of an applied rollback, and initial records of forks and replays."""

from collections.abc import Sequence
from uuid import UUID, uuid5

from pydantic import Field

from control_plane.core.model.branch_tree import candidates, free_name, is_doubted
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.health import Alert
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    Parent,
    Readback,
    Record,
)
from control_plane.core.model.state import RunState
from control_plane.core.model.values import MAX_NAMES_TOLD

TRUSTED = "trusted"
"""In a rollback, instead of a name: the newest trusted checkpoint of the current branch."""


class ScheduledCommand(Message):
    """A command and the step after which it takes effect."""

    command: Command
    step: int = Field(ge=0)
    training: int = Field(default=1, ge=1, description="of which of the script's trainings that is a step")


class AdoptedCheckpoint(Message):
    """A checkpoint copied from another run, on a branch of its own (`checkpoint.branch`).

    `differing`: settings that differ between the two runs' configs, as pairs (other run's value, own value).
    """

    origin: Parent
    checkpoint: CheckpointCommitted
    differing: Readback = {}


class Origin(Message):
    """Initial state of a run created from another run: the parent, its checkpoint, and commands to replay.

    `adopted`: checkpoints that the replayed run had adopted from other runs.
    """

    parent: Parent
    checkpoint: CheckpointCommitted | None = None
    scheduled: tuple[ScheduledCommand, ...] = ()
    adopted: tuple[AdoptedCheckpoint, ...] = ()


def begin(origin: Origin) -> list[Record]:
    """Return the records that follow `RunCreated` in a run created from another run."""
    saved: list[Record] = [origin.checkpoint] if origin.checkpoint is not None else []
    adopted = [record for each in origin.adopted for record in take_in(each)]
    return saved + adopted + schedule(origin.scheduled)


def take_in(adopted: AdoptedCheckpoint) -> list[Record]:
    """Return the records of an adopted branch and its checkpoint."""
    return [BranchAdopted(branch=adopted.checkpoint.branch, origin=adopted.origin), adopted.checkpoint]


def go_on_with(adoption: Command) -> Command:
    """Return the command that switches the run to the adopted branch, with a uuid derived from the adoption's."""
    assert isinstance(adoption.intent, AdoptCheckpoint)
    intent = Rollback(branch=adoption.intent.branch)
    return adoption.model_copy(update={"uuid": uuid5(adoption.uuid, "go-on"), "intent": intent, "based_on_seq": None})


def schedule(commands: Sequence[ScheduledCommand]) -> list[Record]:
    """Return the records that accept commands and schedule each for its step."""
    return [
        record
        for each in commands
        for record in (
            CommandAccepted(command=each.command),
            CommandScheduled(uuid=each.command.uuid, step=each.step, training=each.training),
        )
    ]


def first_commands(command: Command, step: int, training: int = 1) -> list[ScheduledCommand]:
    """Return the initial changes of a rollback as scheduled commands, with uuids derived from the rollback's."""
    assert isinstance(command.intent, Rollback)
    base = command.model_copy(update={"not_before_step": None, "not_after_step": None, "based_on_seq": None})
    return [
        ScheduledCommand(
            command=base.model_copy(update={"uuid": first_uuid(command.uuid, at), "intent": intent}),
            step=step,
            training=training,
        )
        for at, intent in enumerate(command.intent.first)
    ]


def first_uuid(rollback: UUID, place: int) -> UUID:
    """Return the uuid of the change at index `place` of a rollback's `first`."""
    return uuid5(rollback, f"first-{place}")


def newest_trusted(
    state: RunState, branch: str | None = None, but_for: Alert | None = None
) -> CheckpointCommitted | None:
    """Return the newest trusted checkpoint that a branch, by default the current one, can be restored from.

    `but_for`: an alert that is not recorded yet; what it makes suspect does not count.
    """
    training = state.generation.training if state.generation else None
    for each in candidates(state.tree, state.checkpoints, branch or state.tree.head, training):
        if each.health == "trusted" and not (but_for and is_doubted(state.tree, each, but_for)):
            return each
    return None


def no_trusted(state: RunState, but_for: Alert | None = None) -> str:
    """Return the message for a branch without a trusted checkpoint: what it has instead, and what to do."""
    newest = candidates(state.tree, state.checkpoints, state.tree.head)[:MAX_NAMES_TOLD]
    verdicts = {
        each.checkpoint: "suspect" if but_for and is_doubted(state.tree, each, but_for) else each.health
        for each in newest
    }
    listed = ", ".join(f"{name} ({verdict})" for name, verdict in verdicts.items()) or "none"
    return (
        f"branch {state.tree.head} of run {state.run} has no trusted checkpoint; its newest are {listed}; name one to "
        "roll back to it"
    )


def resolve_trusted(state: RunState, command: Command) -> Command:
    """Return a rollback to `trusted` with the name of that checkpoint; other commands unchanged. Raises `NotFound`."""
    if not isinstance(command.intent, Rollback) or command.intent.checkpoint != TRUSTED:
        return command
    target = newest_trusted(state)
    if target is None:
        raise NotFound(no_trusted(state))
    intent = command.intent.model_copy(update={"checkpoint": target.checkpoint})
    return command.model_copy(update={"intent": intent})


def is_same_request(known: Command, command: Command) -> bool:
    """Return whether a command asks again for what a known one has asked for; `trusted` was replaced by a name then."""
    intent = known.intent
    if isinstance(command.intent, Rollback) and command.intent.checkpoint == TRUSTED and isinstance(intent, Rollback):
        intent = intent.model_copy(update={"checkpoint": TRUSTED if intent.checkpoint else None})
    return known.model_copy(update={"intent": intent}) == command


def check_rollback(state: RunState, intent: Rollback) -> None:
    """Raise `NotFound` for an unknown checkpoint or branch, `Conflict` if the run cannot be taken there."""
    pending = [state.commands[uuid].command.intent for uuid in state.pending]
    if intent.checkpoint is None:
        if intent.branch not in state.tree.branches:
            # A branch that a pending rollback is to create does not count: that rollback may still be rejected.
            raise NotFound(f"run {state.run} has no branch {intent.branch!r}; it has {', '.join(state.tree.branches)}")
        if intent.branch == state.tree.head and not any(isinstance(each, Rollback) for each in pending):
            raise Conflict(f"run {state.run} is on branch {intent.branch} already")
        return
    check_branch_is_free(state, intent.branch)
    if intent.checkpoint == TRUSTED:
        if newest_trusted(state) is None:
            raise NotFound(no_trusted(state))
        return
    names = [each.checkpoint for each in state.checkpoints.existing]
    # During a replay the rollbacks are known before their checkpoints exist; those are not checked here.
    if intent.checkpoint not in names:
        listed = ", ".join(names[-MAX_NAMES_TOLD:]) or "none"
        gone = "; it was discarded" if intent.checkpoint in state.checkpoints.discarded else ""
        raise NotFound(f"run {state.run} has no checkpoint {intent.checkpoint!r}{gone}; the newest are {listed}")
    if intent.checkpoint in state.checkpoints.abandoned:
        raise Conflict(
            f"checkpoint {intent.checkpoint} is abandoned: its branch was restarted from an earlier step; choose "
            "another checkpoint"
        )


def names_to_come(state: RunState) -> list[str]:
    """Return the names of branches that pending rollbacks will create."""
    pending = (state.commands[uuid].command.intent for uuid in state.pending)
    return [each.branch for each in pending if isinstance(each, Rollback) and each.checkpoint and each.branch]


def next_name(state: RunState) -> str:
    """Return a default branch name that no existing or pending branch has."""
    return free_name([*state.tree.branches, *names_to_come(state)])


def check_branch_is_free(state: RunState, name: str | None) -> None:
    """Raise `Conflict` if an existing or pending branch has this name."""
    if name in [*state.tree.branches, *names_to_come(state)]:
        raise Conflict(f"run {state.run} has a branch {name!r} already; choose another name")


def settle_rollback(state: RunState, command: Command) -> list[Record]:
    """Return the records of a rollback applied while no trainers run; the next generation starts from there.

    None while trainers run, or if the command is tied to a step: then it waits for trainers that reach it.
    """
    assert isinstance(command.intent, Rollback)
    has_trainers = state.generation is not None and state.ended is None and state.listens
    if has_trainers or command.not_before_step is not None or command.not_after_step is not None:
        return []
    target = state.checkpoints.find(command.intent.checkpoint)
    after = (
        {"branch": command.intent.branch} if target is None else reading(target.checkpoint, target.step, target.branch)
    )
    outcome = CommandSettled(uuid=command.uuid, status="applied", step=state.step, after=after)
    return [outcome, *branch_off(state, command, outcome)]


def reading(checkpoint: str, step: int, branch: str) -> dict[str, object]:
    """Return the readback of the checkpoint that a rollback restores."""
    return {"checkpoint": checkpoint, "step": step, "from_branch": branch}


def branch_off(state: RunState, command: Command, outcome: CommandSettled) -> list[Record]:
    """Return the records that follow an applied rollback: the new or resumed branch and its initial changes."""
    intent = command.intent
    if not isinstance(intent, Rollback) or outcome.status != "applied":
        return []
    if intent.checkpoint is None:
        there_is = intent.branch is not None and intent.branch in state.tree.branches
        return [BranchResumed(branch=str(intent.branch) if there_is else state.tree.head, rollback=command.uuid)]
    after = outcome.after or {}
    step, parent = int(after["step"]), str(after["from_branch"])
    is_free = intent.branch is not None and intent.branch not in state.tree.branches
    name = str(intent.branch) if is_free else next_name(state)
    started = BranchStarted(branch=name, parent=parent, checkpoint=intent.checkpoint, step=step, rollback=command.uuid)
    base = state.checkpoints.find(intent.checkpoint)
    training = base.training if base is not None else 1
    return [started, *schedule(first_commands(command, step, training))]


def stands_on(state: RunState) -> set[str]:
    """Return the names of checkpoints in use: bases of branches, targets of pending rollbacks, restart points,
    and the newest trusted one of each branch."""
    pending = (state.commands[uuid].command.intent for uuid in state.pending)
    wanted = {each.checkpoint for each in pending if isinstance(each, Rollback) and each.checkpoint}
    bases = {branch.checkpoint for branch in state.tree.branches.values() if branch.checkpoint}
    # Of every training of the script: when it restarts, it goes through all of them in order.
    trainings = {each.training for each in state.checkpoints.existing}
    best = {
        each.checkpoint
        for branch in state.tree.branches
        for one in trainings
        for each in candidates(state.tree, state.checkpoints, branch, one)[:1]
    }
    # The checkpoint a fork started from: the run cannot be restored from anything earlier.
    given = {each.checkpoint for each in state.checkpoints.existing if each.generation == 0}
    # While checks are red, only suspect ones are saved: the way back to a trusted one stays open.
    trusted = {each.checkpoint for branch in state.tree.branches if (each := newest_trusted(state, branch))}
    return wanted | bases | best | given | trusted | _base_of_trial(state)


def _base_of_trial(state: RunState) -> set[str]:
    """Return the checkpoint to which a running trial goes back, see `agent.trials`."""
    tried = state.agent.proposals.get(state.agent.tried) if state.agent.tried is not None else None
    if tried is None or not tried.is_on_trial:
        return set()
    saves = (life for life in state.commands.values() if life.accepted_seq > tried.trial_seq)
    read = (life.settled.after or {} for life in saves if life.status == "applied" and life.settled is not None)
    return {str(after["checkpoint"]) for after in read if "checkpoint" in after}
