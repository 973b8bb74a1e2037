"""`steer tree` and `steer compare`: show the branches and forks of a run, and compare them."""

from typing import Annotated, Any

import typer

from control_plane.api import sentences
from control_plane.api.messages import BranchView, Intervention
from control_plane.cli.commands import show
from control_plane.cli.errors import UsageError
from control_plane.cli.output.printing import ascii_json, tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.compare.comparison import Comparison, RunTree, TreeBranch, rows
from control_plane.compare.lineage import depths

INDENT = "   "
MAX_CHANGES_SHOWN = 6
"""Most changes of a branch that `steer tree` prints; `steer journal` has all of them."""


def tree(run: show.Run = None, as_json: show.AsJson = False) -> None:
    """Show the branches and forks of a run: origin, changes, last step, best loss. `*` marks the head branch."""
    with connect() as client:
        run_tree = client.tree(any_run(client, run))
    tell(*([ascii_json(run_tree.model_dump_json())] if as_json else describe(run_tree)))


def describe(run_tree: RunTree) -> list[str]:
    """Format a run's tree as lines."""
    lines = [f"{run_tree.run}  {run_tree.status}{_parentage(run_tree)}"]
    depth = depths(branch.branch for branch in run_tree.branches)
    for branch in run_tree.branches:
        name = branch.branch.branch
        lines += [f"{INDENT * depth[name]}{line}" for line in _branch(branch)]
        for child in run_tree.children:
            if child.parent is not None and child.parent.branch == name:
                where = f"at step {child.parent.step}" if child.parent.kind == "fork" else "from the start"
                left_out = sentences.describe_left_out(child.parent)
                described = f"> {child.parent.kind} {child.run} {where}{left_out}: {child.status}, step {child.step}"
                lines.append(f"{INDENT * (depth[name] + 1)}{described}")
    return lines


def _parentage(run_tree: RunTree) -> str:
    parent = run_tree.parent
    if parent is None:
        return ""
    if parent.kind == "replay":
        return f", a replay of {parent.run}{sentences.describe_left_out(parent)}"
    return f", a fork of {parent.run}:{parent.branch} at step {parent.step} ({parent.checkpoint})"


def _branch(branch: TreeBranch) -> list[str]:
    view = branch.branch
    cells = [f"{'*' if view.head else '-'} {view.branch}", _reach(view)]
    cells += [f"latest {view.newest_checkpoint}"] if view.newest_checkpoint else ["no checkpoint of its own"]
    cells += [f"best {branch.best.name} {branch.best.value:.4g} at step {branch.best.step}"] if branch.best else []
    lines = ["  ".join(cells)]
    lines += [f"    started with {', '.join(view.first)}"] if view.first else []
    older = len(branch.changes) - MAX_CHANGES_SHOWN
    lines += [f"    {older} older changes"] if older > 0 else []
    return lines + [f"    {change(made)}" for made in branch.changes[-MAX_CHANGES_SHOWN:]]


def _reach(view: BranchView) -> str:
    if view.origin is not None and view.origin.kind == "adopted":
        return f"adopted from {sentences.describe_origin(view.origin)}, to step {view.reached_step}"
    if view.parent is None:
        return f"to step {view.reached_step}"
    return f"from step {view.step} of {view.parent} to step {view.reached_step}"


def change(done: Intervention) -> str:
    """Format an intervention: `step 45: lr x 0.5, by ann because 'too hot'`."""
    reason = f" because {sentences.clean(done.reason)!r}" if done.reason else ""
    return f"step {done.step}: {done.what}, by {done.author}{reason}"


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="Two or more of RUN, RUN:BRANCH, RUN@STEP, RUN@CHECKPOINT."),
    ],
    as_json: show.AsJson = False,
) -> None:
    """Compare branches and runs from their last common step: knobs, commands, losses."""
    if len(sides) < 2:
        raise UsageError("expected two or more runs or branches, for example: steer compare RUN RUN:branch-2")
    with connect() as client:
        comparison = client.compare([_with_run(client, side) for side in sides])
    if as_json:
        tell_json(comparison)
        return
    tell(_common(comparison))
    heads = ("", *(side.name for side in comparison.sides))
    show.print_table(heads, rows(comparison))
    for side in comparison.sides:
        tell("", f"{side.name} (branch {side.branch}, step {side.step})")
        tell(*([f"  {change(made)}" for made in side.interventions] or ["  no commands since then"]))


def _with_run(client: Any, side: str) -> str:
    """Return the side with the run's prefix or suffix replaced by its whole id."""
    run = side.replace("@", ":").split(":", 1)[0]
    return any_run(client, run) + side[len(run) :] if run else side


def _common(comparison: Comparison) -> str:
    at = comparison.common
    where = f"in common up to step {at.step} of {at.run}:{at.branch}" if at.run else "nothing in common"
    return f"{where}; all have reached step {comparison.last_common_step}"
