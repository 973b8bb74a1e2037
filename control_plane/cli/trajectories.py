"""What a run has tried: `steer tree` shows its branches, `steer compare` puts branches and runs beside each other."""

from typing import Annotated, Any

import typer

from control_plane import telling
from control_plane.cli import looking
from control_plane.cli.printing import ascii_json, tell, tell_json
from control_plane.cli.refusals import Misused
from control_plane.cli.target import any_run, connect
from control_plane.comparing import Comparison, RunTree, TreeBranch, rows
from control_plane.handle import BranchView, Intervention
from control_plane.lineage import depths

INDENT = "   "
MAX_CHANGES_SHOWN = 6
"""The newest of a branch's changes; `steer journal` has them all."""


def tree(run: looking.Run = None, as_json: looking.AsJson = False) -> None:
    """Show a run's branches: where each began, with what, how far it came, its best loss. `*` marks the head."""
    with connect() as client:
        found = client.tree(any_run(client, run))
    tell(*([ascii_json(found.model_dump_json())] if as_json else describe(found)))


def describe(found: RunTree) -> list[str]:
    """A tree in lines."""
    lines = [f"{found.run}  {found.status}{_parentage(found)}"]
    depth = depths(each.branch for each in found.branches)
    for each in found.branches:
        lines += [f"{INDENT * depth[each.branch.branch]}{line}" for line in _branch(each)]
        for child in found.children:
            if child.parent is not None and child.parent.branch == each.branch.branch:
                where = f"at step {child.parent.step}" if child.parent.kind == "fork" else "from the beginning"
                told = f"> {child.parent.kind} {child.run} {where}: {child.status}, step {child.step}"
                lines.append(f"{INDENT * (depth[each.branch.branch] + 1)}{told}")
    return lines


def _parentage(found: RunTree) -> str:
    parent = found.parent
    if parent is None:
        return ""
    if parent.kind == "replay":
        return f", does again what {parent.run} did"
    return f", a fork of {parent.run}:{parent.branch} at step {parent.step} ({parent.checkpoint})"


def _branch(found: TreeBranch) -> list[str]:
    view = found.branch
    told = [f"{'*' if view.head else '-'} {view.branch}", _reach(view)]
    told += [f"newest {view.newest_checkpoint}"] if view.newest_checkpoint else ["no checkpoint of its own"]
    told += [f"best {found.best.name} {found.best.value:.4g} at step {found.best.step}"] if found.best else []
    lines = ["  ".join(told)]
    lines += [f"    began with {', '.join(view.first)}"] if view.first else []
    older = len(found.changes) - MAX_CHANGES_SHOWN
    lines += [f"    {older} older changes"] if older > 0 else []
    return lines + [f"    {change(each)}" for each in found.changes[-MAX_CHANGES_SHOWN:]]


def _reach(view: BranchView) -> str:
    if view.origin is not None and view.origin.kind == "adopted":
        return f"adopted from {telling.whence(view.origin)}, to step {view.reached_step}"
    if view.parent is None:
        return f"to step {view.reached_step}"
    return f"from step {view.step} of {view.parent} to step {view.reached_step}"


def change(done: Intervention) -> str:
    """An intervention on one line: `step 45: lr x 0.5, by ann because 'too hot'`."""
    reason = f" because {telling.clean(done.reason)!r}" if done.reason else ""
    return f"step {done.step}: {done.what}, by {done.author}{reason}"


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="RUN, RUN:BRANCH, RUN@STEP or RUN@CHECKPOINT: two or more of them."),
    ],
    as_json: looking.AsJson = False,
) -> None:
    """Put branches and runs beside each other, from the step where they part: knobs, commands, losses."""
    if len(sides) < 2:
        raise Misused("give two or more to compare, for example: steer compare RUN RUN:branch-2")
    with connect() as client:
        found = client.compare([_with_run(client, side) for side in sides])
    if as_json:
        tell_json(found)
        return
    tell(_common(found))
    heads = ("", *(side.name for side in found.sides))
    looking.print_table(heads, rows(found))
    for side in found.sides:
        tell("", f"{side.name} (branch {side.branch}, step {side.step})")
        tell(*([f"  {change(each)}" for each in side.interventions] or ["  no commands since then"]))


def _with_run(client: Any, side: str) -> str:
    """The side with its run's whole id, where only the beginning or the end of it was given."""
    run = side.replace("@", ":").split(":", 1)[0]
    return any_run(client, run) + side[len(run) :] if run else side


def _common(found: Comparison) -> str:
    at = found.common
    where = f"in common up to step {at.step} of {at.run}:{at.branch}" if at.run else "nothing in common"
    return f"{where}; all have reached step {found.last_common_step}"
