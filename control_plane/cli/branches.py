"""What takes a run to another branch: `steer rollback` begins one at a checkpoint, `steer switch` goes on with one."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from control_plane.cli.asking import Asked, Yes, check_can_ask, confirm, intent_of, run_and
from control_plane.cli.going import taking
from control_plane.cli.knobs import check_known, parse_assignment
from control_plane.cli.refusals import Misused
from control_plane.cli.target import active_run, any_run, connect
from control_plane.comparing import parse
from control_plane.core.branches import free_name
from control_plane.core.commands import Intent
from control_plane.core.errors import NotFound
from control_plane.core.intents import BranchName
from control_plane.core.limits import LEARNING_RATE
from control_plane.core.records import CheckpointCommitted
from control_plane.handle import Snapshot
from control_plane.telling import A_BRANCH_NAME

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

MAX_NAMED = 8
"""As many checkpoints or branches as a refusal lists."""

AT_STEP = "step:"
NAMED: TypeAdapter[str] = TypeAdapter(BranchName)
LEAVES = "this leaves the branch that is trained; what it made since its newest checkpoint is lost to it"
EXAMPLE = "steer rollback RUN step-00000200-g1 --set lr=1e-4"
HOW_TO_NAME = "its name, the beginning of it, its label, or step:N"


@taking
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


@taking
def switch(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] BRANCH", help="A branch of `steer tree`, or the beginning of its name."),
    ],
    yes: Yes = False,
) -> Asked:
    """Go on with another branch of a run, from its newest checkpoint. The branch that is left stays as it is."""
    run, given = run_and(words, "a branch", "steer switch RUN branch-2")
    check_can_ask(yes, LEAVES)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    return _on_with(snapshot, find_branch(snapshot, given), yes)


@taking
def adopt(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] BRANCH|FORK",
            help="A branch of the run; or a fork of it: FORK, FORK:BRANCH, FORK@STEP or FORK@CHECKPOINT.",
        ),
    ],
    branch: Annotated[
        str | None, typer.Option(help="What a fork's branch is called; otherwise it gets a number.")
    ] = None,
    yes: Yes = False,
) -> Asked:
    """Have the best branch go on as the run's head; or the best fork, as a branch of the run it was forked from."""
    run, given = run_and(words, "a branch or a fork", "steer adopt RUN FORK")
    named = None if branch is None else _checked(branch)
    check_can_ask(yes, LEAVES)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
        if given and any(each.branch.startswith(given) for each in snapshot.branches):
            if branch is not None:
                raise Misused(f"{given} is a branch of {snapshot.run}, and has its name: leave --branch out")
            return _on_with(snapshot, find_branch(snapshot, given), yes)
        fork, checkpoint = _of_another_run(client, snapshot, given)
    at = f"{checkpoint.checkpoint} (step {checkpoint.step})" if checkpoint else f"the newest checkpoint of {fork}"
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} to {at}, as a branch of its own?"
    confirm(yes, question, "the run was left as it is")
    name = named or free_name([each.branch for each in snapshot.branches])
    found = checkpoint.checkpoint if checkpoint else None
    return snapshot.run, intent_of("adopt_checkpoint", run=fork, checkpoint=found, branch=name)


def _of_another_run(client: "SteerwayClient", snapshot: Snapshot, given: str) -> tuple[str, CheckpointCommitted | None]:
    """`FORK`, `FORK:BRANCH`, either of them `@STEP` or `@CHECKPOINT`. Raises `NotFound`, `Misused`, `Invalid`."""
    asked = parse(given)
    try:
        other = client.snapshot(any_run(client, asked.run))
    except NotFound:
        listed = ", ".join(each.branch for each in snapshot.branches)
        raise NotFound(
            f"{given!r} is neither a branch of {snapshot.run}, which has {listed}, nor is there a run of that name"
        ) from None
    if asked.place is not None:
        place = f"{AT_STEP}{asked.place}" if asked.place.isdecimal() else asked.place
        return other.run, find_checkpoint(other, place)
    if asked.branch is None:
        return other.run, None
    name = find_branch(other, asked.branch)
    newest = next(each.newest_checkpoint for each in other.branches if each.branch == name)
    if newest is None:
        raise NotFound(f"branch {name} of run {other.run} has no checkpoint of its own")
    return other.run, find_checkpoint(other, newest)


def _on_with(snapshot: Snapshot, branch: str, yes: bool) -> Asked:
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} to branch {branch}?"
    confirm(yes, question, "the run was left as it is")
    return snapshot.run, intent_of("rollback", branch=branch)


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
