"""What takes a run to another branch: `steer rollback` begins one at a checkpoint, `steer switch` goes on with one."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from control_plane.cli.asking import Asked, Yes, check_can_ask, confirm, intent_of, run_and, steering
from control_plane.cli.knobs import check_known, parse_assignment
from control_plane.cli.refusals import Misused
from control_plane.cli.target import active_run, connect
from control_plane.core.commands import Intent
from control_plane.core.errors import Conflict, NotFound, RunEnded
from control_plane.core.intents import BranchName
from control_plane.core.limits import LEARNING_RATE
from control_plane.core.records import (
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    Entry,
    GenerationStarted,
    RunClosed,
)
from control_plane.handle import CommandView, Snapshot
from control_plane.telling import A_BRANCH_NAME

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

MAX_NAMED = 8
"""As many checkpoints or branches as a refusal lists."""

POLL_S = 20.0
AT_STEP = "step:"
NAMED: TypeAdapter[str] = TypeAdapter(BranchName)
EXAMPLE = "steer rollback RUN step-00000200-g1 --set lr=1e-4"
HOW_TO_NAME = "its name, the beginning of it, its label, or step:N"


def arrive(client: "SteerwayClient", run: str, view: CommandView, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Wait until the trainers of the other branch have begun. Raises `NotSettledYet`, `RunEnded`, `Conflict`."""
    from control_plane.client import NotSettledYet

    until, after, branch = time.monotonic() + timeout_s, view.accepted_seq, ""
    while (left_s := until - time.monotonic()) > 0:
        for entry in client.journal(run, after=after, wait_s=min(left_s, POLL_S)):
            after, record = entry.seq, entry.record
            if isinstance(record, BranchStarted | BranchResumed):
                if branch:
                    raise Conflict(f"run {run} was taken to branch {record.branch} before {branch} had begun to train")
                branch = record.branch if record.rollback == view.command.uuid else ""
            elif isinstance(record, GenerationStarted) and branch and record.branch == branch:
                return _begun(view, entry, record)
            elif isinstance(record, RunClosed):
                raise RunEnded(f"run {run} {record.ending} before branch {branch or 'it went to'} had begun to train")
    raise NotSettledYet(
        f"the run was taken to branch {branch or 'asked for'}, but no trainers have begun there within {timeout_s:.0f} "
        f"s; look with: steer status {run}"
    )


def _begun(view: CommandView, entry: Entry, record: GenerationStarted) -> tuple[dict[str, Any], str]:
    left_at = datetime.fromisoformat(view.settled_at or entry.time)
    took_s = (datetime.fromisoformat(entry.time) - left_at).total_seconds()
    members = {"branch": record.branch, "step": record.step, "generation": record.generation, "took_s": took_s}
    return {"arrival": members}, f"on branch {record.branch} at step {record.step}, {took_s:.1f} s"


def _taking(wish: Callable[..., Asked]) -> Callable[..., None]:
    return steering(wish, arrive)


@_taking
def rollback(
    words: Annotated[list[str], typer.Argument(metavar="[RUN] CHECKPOINT", help=f"The checkpoint: {HOW_TO_NAME}.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KNOB=VALUE", help="The branch begins with it: lr=1e-4, lr*=0.5; may be repeated."
        ),
    ] = None,
    branch: Annotated[str | None, typer.Option(help="What the branch is called; otherwise it gets a number.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the learning rate; do not follow the schedule.")] = False,
    yes: Yes = False,
) -> Asked:
    """Go back to a checkpoint and on from there as a new branch. What was trained since stays on the branch it left."""
    run, given = run_and(words, "a checkpoint", EXAMPLE)
    first = first_of(changes or [], hold)
    check_can_ask(yes, "a rollback takes the training back to an earlier step")
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    check_known(snapshot, [name for intent in first for name in _knobs_of(intent)])
    found = find_checkpoint(snapshot, given)
    confirm(
        yes,
        f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} back to {found.checkpoint} (step "
        f"{found.step})?",
        "the run was left as it is",
    )
    named = None if branch is None else _checked(branch)
    return snapshot.run, intent_of(
        "rollback", checkpoint=found.checkpoint, branch=named, first=[each.model_dump() for each in first]
    )


@_taking
def switch(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] BRANCH", help="A branch of `steer tree`, or the beginning of its name."),
    ],
    yes: Yes = False,
) -> Asked:
    """Go on with another branch of a run, from its newest checkpoint. The branch that is left stays as it is."""
    return _switch(words, "steer switch RUN branch-2", yes)


@_taking
def adopt(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] BRANCH", help="A branch of `steer tree`, or the beginning of its name."),
    ],
    yes: Yes = False,
) -> Asked:
    """Have the best branch go on as the run's head, from its newest checkpoint. The same as `steer switch`."""
    return _switch(words, "steer adopt RUN branch-2", yes)


def _switch(words: Sequence[str], example: str, yes: bool) -> Asked:
    run, given = run_and(words, "a branch", example)
    check_can_ask(yes, "this leaves the branch that is trained; what it made since its newest checkpoint is lost to it")
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    name = find_branch(snapshot, given)
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} to branch {name}?"
    confirm(yes, question, "the run was left as it is")
    return snapshot.run, intent_of("rollback", branch=name)


def first_of(assignments: Iterable[str], hold: bool) -> list[Intent]:
    """What a branch begins with: the learning rate by itself, all other knobs in one command. Raises `Misused`."""
    parsed = [parse_assignment(word) for word in assignments]
    rates = [change for change in parsed if change["knob"] == LEARNING_RATE]
    others = [change for change in parsed if change["knob"] != LEARNING_RATE]
    if len(rates) > 1:
        raise Misused("the learning rate is set twice in one command")
    if hold and not rates:
        raise Misused("--hold is for the learning rate: give --set lr=VALUE with it")
    made = []
    for change in rates:
        members = {name: value for name, value in change.items() if name != "knob"}
        made.append(intent_of("set_learning_rate", schedule="hold" if hold else "keep", **members))
    return [*made, *([intent_of("set_knobs", changes=others)] if others else [])]


def _knobs_of(intent: Intent) -> list[str]:
    return [change.knob for change in getattr(intent, "changes", ())]


def find_checkpoint(snapshot: Snapshot, given: str) -> CheckpointCommitted:
    """By name, label, step or the beginning of the name. Raises `NotFound`, `Misused`."""
    found = [each for each in snapshot.checkpoints if each.checkpoint == given]
    found = found or [each for each in snapshot.checkpoints if each.label == given]
    found = found or [each for each in snapshot.checkpoints if given == f"{AT_STEP}{each.step}"]
    if not given.startswith(AT_STEP):
        found = found or [each for each in snapshot.checkpoints if given and each.checkpoint.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misused(
            f"{len(found)} checkpoints are meant by {given!r}: {_listed(found)}; say more of the one you mean"
        )
    there_are = _listed(snapshot.checkpoints) or "none yet"
    raise NotFound(f"run {snapshot.run} has no checkpoint {given!r} ({HOW_TO_NAME}); it has {there_are}")


def find_branch(snapshot: Snapshot, given: str) -> str:
    """By name, or the beginning of it. Raises `NotFound`, `Misused`."""
    names = [each.branch for each in snapshot.branches]
    found = [name for name in names if name == given] or [name for name in names if given and name.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misused(f"{len(found)} branches begin with {given!r}: {', '.join(found)}; say more of the one you mean")
    raise NotFound(f"run {snapshot.run} has no branch {given!r}; it has {', '.join(names)}")


def _listed(found: Sequence[CheckpointCommitted]) -> str:
    names = [each.checkpoint + (f" ({each.label})" if each.label else "") for each in found]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[-MAX_NAMED:]) + more


def _checked(branch: str) -> str:
    try:
        return NAMED.validate_python(branch)
    except ValidationError:
        raise Misused(f"{branch!r} is no name for a branch: it has {A_BRANCH_NAME}") from None
