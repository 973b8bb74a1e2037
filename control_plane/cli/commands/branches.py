"""`steer rollback`, `steer switch` and `steer adopt`: continue a run on another branch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from control_plane.api.messages import Snapshot
from control_plane.api.sentences import A_BRANCH_NAME
from control_plane.cli.commands.knobs import check_known, parse_assignment
from control_plane.cli.commands.lifecycle import RunIntent, Yes, build_intent, check_can_ask, confirm, run_and
from control_plane.cli.errors import UsageError
from control_plane.cli.launching.continue_run import branch_command
from control_plane.cli.select_run import active_run, any_run, connect
from control_plane.compare.comparison import parse
from control_plane.core.model.branch_tree import free_name
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import NotFound
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.records import CheckpointCommitted
from control_plane.core.model.values import BranchName
from control_plane.core.rules.branch_rules import TRUSTED

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

MAX_NAMED = 8
"""Most checkpoints that an error message lists."""

AT_STEP = "step:"
NAMED: TypeAdapter[str] = TypeAdapter(BranchName)
LEAVES = "this leaves the current branch, which loses the steps since its latest checkpoint"
EXAMPLE = "steer rollback RUN step-00000200-g1 --set lr=1e-4"
HOW_TO_NAME = "name, prefix of the name, label, or step:N"
HOW_TO_GO_BACK = f"{HOW_TO_NAME}; `{TRUSTED}`: the newest that was saved in good health"


@branch_command
def rollback(
    words: Annotated[list[str], typer.Argument(metavar="[RUN] CHECKPOINT", help=f"Its {HOW_TO_GO_BACK}.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KNOB=VALUE", help="Set a knob on the new branch: lr=1e-4, lr*=0.5. Repeatable."),
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Name of the new branch. Default: branch-N.")] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Hold the learning rate constant instead of following the schedule.")
    ] = False,
    skip: Annotated[
        int | None,
        typer.Option("--skip", metavar="N", min=1, help="Leave out the next N samples, e.g. those of a bad batch."),
    ] = None,
    yes: Yes = False,
) -> RunIntent:
    """Return to a checkpoint and continue from it on a new branch. The current branch keeps what it has trained."""
    run, given = run_and(words, "a checkpoint", EXAMPLE)
    first = first_of(changes or [], hold)
    if skip is not None:
        first.append(build_intent("skip_samples", samples=skip))
    check_can_ask(yes, "a rollback returns the training to an earlier step")
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    check_known(snapshot, [name for intent in first for name in _knobs_of(intent)])
    name, where = given, f"the newest {TRUSTED} checkpoint"
    if given != TRUSTED:  # the control server finds it: by then, there may be another
        checkpoint = find_checkpoint(snapshot, given)
        name, where = checkpoint.checkpoint, f"{checkpoint.checkpoint} (step {checkpoint.step})"
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} back to {where}?"
    confirm(yes, question, "not confirmed; the run was not changed")
    named = None if branch is None else _checked(branch)
    return snapshot.run, build_intent(
        "rollback", checkpoint=name, branch=named, first=[command.model_dump() for command in first]
    )


@branch_command
def switch(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] BRANCH", help="A branch as `steer tree` lists it, or a prefix of its name."),
    ],
    yes: Yes = False,
) -> RunIntent:
    """Continue another branch of a run from its latest checkpoint. The current branch stays in the tree."""
    run, given = run_and(words, "a branch", "steer switch RUN branch-2")
    check_can_ask(yes, LEAVES)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    return _on_with(snapshot, find_branch(snapshot, given), yes)


@branch_command
def adopt(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] BRANCH|FORK",
            help="A branch of the run, or a fork of it: FORK, FORK:BRANCH, FORK@STEP or FORK@CHECKPOINT.",
        ),
    ],
    branch: Annotated[
        str | None, typer.Option(help="Name of the branch that is made from a fork. Default: branch-N.")
    ] = None,
    yes: Yes = False,
) -> RunIntent:
    """Make a branch the head of its run, or continue from a fork's checkpoint on a new branch of the parent run."""
    run, given = run_and(words, "a branch or a fork", "steer adopt RUN FORK")
    named = None if branch is None else _checked(branch)
    check_can_ask(yes, LEAVES)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
        if given and any(known.branch.startswith(given) for known in snapshot.branches):
            if branch is not None:
                raise UsageError(
                    f"{given} is already a branch of {snapshot.run}: remove --branch, which names the branch of a fork"
                )
            return _on_with(snapshot, find_branch(snapshot, given), yes)
        fork, checkpoint = _of_another_run(client, snapshot, given)
    at = f"{checkpoint.checkpoint} (step {checkpoint.step})" if checkpoint else f"the latest checkpoint of {fork}"
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} to {at}, as a branch of its own?"
    confirm(yes, question, "not confirmed; the run was not changed")
    name = named or free_name([known.branch for known in snapshot.branches])
    checkpoint_name = checkpoint.checkpoint if checkpoint else None
    return snapshot.run, build_intent("adopt_checkpoint", run=fork, checkpoint=checkpoint_name, branch=name)


def _of_another_run(client: "SteerwayClient", snapshot: Snapshot, given: str) -> tuple[str, CheckpointCommitted | None]:
    """Parse `FORK` or `FORK:BRANCH`, with `@STEP` or `@CHECKPOINT`. Raises `NotFound`, `UsageError`, `Invalid`."""
    asked = parse(given)
    try:
        other = client.snapshot(any_run(client, asked.run))
    except NotFound:
        listed = ", ".join(known.branch for known in snapshot.branches)
        raise NotFound(
            f"{given!r} is neither a branch of {snapshot.run} (it has {listed}) nor a run; see `steer runs`"
        ) from None
    if asked.place is not None:
        place = f"{AT_STEP}{asked.place}" if asked.place.isdecimal() else asked.place
        return other.run, find_checkpoint(other, place)
    if asked.branch is None:
        return other.run, None
    name = find_branch(other, asked.branch)
    newest = next(known.newest_checkpoint for known in other.branches if known.branch == name)
    if newest is None:
        raise NotFound(f"branch {name} of run {other.run} has no checkpoint of its own to adopt")
    return other.run, find_checkpoint(other, newest)


def _on_with(snapshot: Snapshot, branch: str, yes: bool) -> RunIntent:
    question = f"Take {snapshot.run} from step {snapshot.step} of {snapshot.branch} to branch {branch}?"
    confirm(yes, question, "not confirmed; the run was not changed")
    return snapshot.run, build_intent("rollback", branch=branch)


def first_of(assignments: Iterable[str], hold: bool) -> list[Intent]:
    """Return the first commands of a branch: for the learning rate, and for all other knobs. Raises `UsageError`."""
    parsed = [parse_assignment(word) for word in assignments]
    rates = [change for change in parsed if change["knob"] == LEARNING_RATE]
    others = [change for change in parsed if change["knob"] != LEARNING_RATE]
    if len(rates) > 1:
        raise UsageError("the learning rate is set twice in one command")
    if hold and not rates:
        raise UsageError("--hold applies to the learning rate only: add --set lr=VALUE")
    made = []
    for change in rates:
        members = {name: value for name, value in change.items() if name != "knob"}
        made.append(build_intent("set_learning_rate", schedule="hold" if hold else "keep", **members))
    return [*made, *([build_intent("set_knobs", changes=others)] if others else [])]


def _knobs_of(intent: Intent) -> list[str]:
    return [change.knob for change in getattr(intent, "changes", ())]


def find_checkpoint(snapshot: Snapshot, given: str) -> CheckpointCommitted:
    """Return the checkpoint of this name, label, step or name prefix. Raises `NotFound`, `UsageError`."""
    matching = [checkpoint for checkpoint in snapshot.checkpoints if checkpoint.checkpoint == given]
    matching = matching or [checkpoint for checkpoint in snapshot.checkpoints if checkpoint.label == given]
    matching = matching or [checkpoint for checkpoint in snapshot.checkpoints if given == f"{AT_STEP}{checkpoint.step}"]
    if not given.startswith(AT_STEP):
        matching = matching or [
            checkpoint for checkpoint in snapshot.checkpoints if given and checkpoint.checkpoint.startswith(given)
        ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{given!r} matches {len(matching)} checkpoints: {_listed(matching)}; be more specific")
    available = _listed(snapshot.checkpoints) or "none yet"
    raise NotFound(f"run {snapshot.run} has no checkpoint {given!r} (give a {HOW_TO_NAME}); it has {available}")


def find_branch(snapshot: Snapshot, given: str) -> str:
    """Return the branch of this name or name prefix. Raises `NotFound`, `UsageError`."""
    names = [known.branch for known in snapshot.branches]
    matching = [name for name in names if name == given] or [name for name in names if given and name.startswith(given)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{given!r} matches {len(matching)} branches: {', '.join(matching)}; be more specific")
    raise NotFound(f"run {snapshot.run} has no branch {given!r}; it has {', '.join(names)}")


def _listed(checkpoints: Sequence[CheckpointCommitted]) -> str:
    names = [record.checkpoint + (f" ({record.label})" if record.label else "") for record in checkpoints]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[-MAX_NAMED:]) + more


def _checked(branch: str) -> str:
    try:
        return NAMED.validate_python(branch)
    except ValidationError:
        raise UsageError(f"{branch!r} is not a valid branch name: it needs {A_BRANCH_NAME}") from None
