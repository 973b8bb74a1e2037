"""The rules of branches: where a rollback may go, what it makes of the run, and how a run begins that has a parent."""

from collections.abc import Sequence
from uuid import UUID, uuid5

from pydantic import Field

from control_plane.core.model.branch_tree import candidates, free_name
from control_plane.core.model.commands import Command, Words
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intents import MAX_NAMES_TOLD, AdoptCheckpoint, Rollback
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CommandAccepted,
    CommandScheduled,
    CommandSettled,
    Parent,
    Reading,
    Record,
)
from control_plane.core.model.state import RunState


class Scheduled(Words):
    """A command and the step after which it takes effect."""

    command: Command
    step: int = Field(ge=0)
    training: int = Field(default=1, ge=1, description="of which of the script's trainings that is a step")


class Adopted(Words):
    """A checkpoint of another run that has become this run's, on a branch of its own (`checkpoint.branch`).

    `differing` are the settings in which the two runs' configs differ: a pair for each, the other run's first.
    """

    origin: Parent
    checkpoint: CheckpointCommitted
    differing: Reading = {}


class Origin(Words):
    """How a run begins that does not begin at nothing: from whom, at which checkpoint, with which commands.

    `adopted`: what a run that is replayed had adopted from others.
    """

    parent: Parent
    checkpoint: CheckpointCommitted | None = None
    scheduled: tuple[Scheduled, ...] = ()
    adopted: tuple[Adopted, ...] = ()


def begin(origin: Origin) -> list[Record]:
    """The records that follow a run's first one."""
    saved: list[Record] = [origin.checkpoint] if origin.checkpoint is not None else []
    adopted = [record for each in origin.adopted for record in take_in(each)]
    return saved + adopted + schedule(origin.scheduled)


def take_in(adopted: Adopted) -> list[Record]:
    """A branch that begins at another run's checkpoint, and that checkpoint."""
    return [BranchAdopted(branch=adopted.checkpoint.branch, origin=adopted.origin), adopted.checkpoint]


def go_on_with(adoption: Command) -> Command:
    """The command that takes a run to the branch that `adoption` gives it; its uuid follows from that one's."""
    assert isinstance(adoption.intent, AdoptCheckpoint)
    intent = Rollback(branch=adoption.intent.branch)
    return adoption.model_copy(update={"uuid": uuid5(adoption.uuid, "go-on"), "intent": intent, "based_on_seq": None})


def schedule(commands: Sequence[Scheduled]) -> list[Record]:
    """Accept commands for certain steps."""
    return [
        record
        for each in commands
        for record in (
            CommandAccepted(command=each.command),
            CommandScheduled(uuid=each.command.uuid, step=each.step, training=each.training),
        )
    ]


def first_commands(command: Command, step: int, training: int = 1) -> list[Scheduled]:
    """What a branch begins with: each change of a rollback as a command, whose uuid follows from the rollback's."""
    assert isinstance(command.intent, Rollback)
    told = command.model_copy(update={"not_before_step": None, "not_after_step": None, "based_on_seq": None})
    return [
        Scheduled(
            command=told.model_copy(update={"uuid": first_uuid(command.uuid, at), "intent": intent}),
            step=step,
            training=training,
        )
        for at, intent in enumerate(command.intent.first)
    ]


def first_uuid(rollback: UUID, place: int) -> UUID:
    """The uuid of the change in this place of a rollback's `first`."""
    return uuid5(rollback, f"first-{place}")


def check_rollback(state: RunState, intent: Rollback) -> None:
    """Raises `NotFound` for an unknown checkpoint or branch, `Conflict` for one that cannot be gone to."""
    pending = [state.commands[uuid].command.intent for uuid in state.pending]
    if intent.checkpoint is None:
        if intent.branch not in state.branches:
            # Not one that a pending rollback is to begin, either: that one may still be refused.
            raise NotFound(f"run {state.run} has no branch {intent.branch!r}; it has {', '.join(state.branches)}")
        if intent.branch == state.head and not any(isinstance(each, Rollback) for each in pending):
            raise Conflict(f"run {state.run} is on branch {intent.branch} already")
        return
    check_branch_is_free(state, intent.branch)
    names = [each.checkpoint for each in state.checkpoints]
    # While a recorded run is replayed, its rollbacks are known before the checkpoints that they go to.
    if intent.checkpoint not in names:
        listed = ", ".join(names[-MAX_NAMES_TOLD:]) or "none"
        gone = "; it was discarded" if intent.checkpoint in state.discarded else ""
        raise NotFound(f"run {state.run} has no checkpoint {intent.checkpoint!r}{gone}; the newest are {listed}")
    if intent.checkpoint in state.abandoned:
        raise Conflict(
            f"checkpoint {intent.checkpoint} was left behind when the trainers began before it: choose another one"
        )


def names_to_come(state: RunState) -> list[str]:
    """What pending rollbacks call the branches that they are to begin."""
    pending = (state.commands[uuid].command.intent for uuid in state.pending)
    return [each.branch for each in pending if isinstance(each, Rollback) and each.checkpoint and each.branch]


def next_name(state: RunState) -> str:
    """A branch's name, where nobody has wished for one: what no branch is called, or is going to be."""
    return free_name([*state.branches, *names_to_come(state)])


def check_branch_is_free(state: RunState, name: str | None) -> None:
    """Raises `Conflict` if a branch is called so, or is going to be."""
    if name in [*state.branches, *names_to_come(state)]:
        raise Conflict(f"run {state.run} has a branch {name!r} already; choose another name")


def settle_at_once(state: RunState, command: Command) -> list[Record]:
    """A rollback of a run that nobody trains: the next trainers begin there."""
    assert isinstance(command.intent, Rollback)
    found = next((each for each in state.checkpoints if each.checkpoint == command.intent.checkpoint), None)
    after = {"branch": command.intent.branch} if found is None else reading(found.checkpoint, found.step, found.branch)
    outcome = CommandSettled(uuid=command.uuid, status="applied", step=state.step, after=after)
    return [outcome, *branch_off(state, command, outcome)]


def reading(checkpoint: str, step: int, branch: str) -> dict[str, object]:
    """What the ranks read of the checkpoint that they go back to."""
    return {"checkpoint": checkpoint, "step": step, "from_branch": branch}


def branch_off(state: RunState, command: Command, outcome: CommandSettled) -> list[Record]:
    """What an applied rollback makes of the run."""
    intent = command.intent
    if not isinstance(intent, Rollback) or outcome.status != "applied":
        return []
    if intent.checkpoint is None:
        there_is = intent.branch is not None and intent.branch in state.branches
        return [BranchResumed(branch=str(intent.branch) if there_is else state.head, rollback=command.uuid)]
    found = outcome.after or {}
    step, parent = int(found["step"]), str(found["from_branch"])
    is_free = intent.branch is not None and intent.branch not in state.branches
    name = str(intent.branch) if is_free else next_name(state)
    started = BranchStarted(branch=name, parent=parent, checkpoint=intent.checkpoint, step=step, rollback=command.uuid)
    base = next((each for each in state.checkpoints if each.checkpoint == intent.checkpoint), None)
    training = base.training if base is not None else 1
    return [started, *schedule(first_commands(command, step, training))]


def stands_on(state: RunState) -> set[str]:
    """The checkpoints that a branch stands on, that a pending rollback goes to, or that a branch could go on from."""
    pending = (state.commands[uuid].command.intent for uuid in state.pending)
    wanted = {each.checkpoint for each in pending if isinstance(each, Rollback) and each.checkpoint}
    bases = {branch.checkpoint for branch in state.branches.values() if branch.checkpoint}
    # Of every training of the script: started again, it goes through all of them in order.
    trainings = {each.training for each in state.checkpoints}
    best = {
        each.checkpoint for branch in state.branches for one in trainings for each in candidates(state, branch, one)[:1]
    }
    # What a run was given at its beginning: before it there is nothing.
    given = {each.checkpoint for each in state.checkpoints if each.generation == 0}
    return wanted | bases | best | given
