"""Branches and runs beside each other: trees, and what differs since two lines part.

Pure: what runs have told in, words out. Whoever has the measurements is asked for stretches of lines.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from control_plane.api.handle import (
    BranchView,
    Intervention,
    Measured,
    Result,
    RunSummary,
    Stretch,
    Trajectories,
    Trajectory,
)
from control_plane.api.sentences import spelled
from control_plane.compare.lineage import (
    Chosen,
    Common,
    Piece,
    before,
    is_on_line,
    line,
    lineage,
    origin_of,
    where_they_part,
)
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.intents import Words
from control_plane.core.model.limits import LEARNING_RATE
from control_plane.core.model.records import CheckpointCommitted, Parent

LOSSES = ("eval_loss", "loss")
"""What a branch is judged by: the first that it has measured."""

MAX_SIDES = 8
"""More lines than this in one chart are told apart by nobody."""

MAX_ANCESTORS = 16
"""A fork of a fork of a fork: so many runs are looked at for the beginning of a line."""

NOT_A_KNOB = frozenset({"groups", "schedule", LEARNING_RATE})
"""Of what trainers read: names, and what the learning rate's schedule moves by itself at every step."""

_SIDE = re.compile(r"(?P<run>[^:@]+)(?::(?P<branch>[^:@]+))?(?:@(?P<place>[^:@]+))?")


class Best(Words):
    """The lowest loss of a branch: of the evaluations where there are any."""

    name: str
    step: int
    value: float


class TreeBranch(Words):
    """One branch of a tree. `changes` were made on it after it began; those that it began with are `branch.first`."""

    branch: BranchView
    changes: tuple[Intervention, ...] = ()
    best: Best | None = None


class RunTree(Words):
    """A run's branches, parents before children, and the runs that have this one as their parent."""

    run: str
    status: str
    head: str
    total_steps: int
    parent: Parent | None = None
    branches: tuple[TreeBranch, ...]
    children: tuple[RunSummary, ...] = ()


class Outcome(Words):
    """What a metric came to on one side: since the lines parted, and at the last step that all have reached."""

    name: str
    last: Measured | None = None
    best: Measured | None = None
    at_common: Measured | None = None


class Side(Words):
    """One of the things that are compared, up to `step`. `line` leads from the first step to it."""

    name: str
    run: str
    branch: str
    step: int
    line: tuple[Piece, ...]
    interventions: tuple[Intervention, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class Difference(Words):
    """A knob that is not the same on all sides, in their order; null where it is not known.

    With `step`, as it was measured there; else as it was last set.
    """

    knob: str
    values: tuple[Any, ...]
    step: int | None = None


class Comparison(Words):
    """Sides beside each other. `last_common_step` is the last one that all of them have reached."""

    common: Common
    last_common_step: int
    sides: tuple[Side, ...]
    knobs: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """`RUN`, `RUN:BRANCH`, and either of them `@STEP` or `@CHECKPOINT`, as it was written."""

    name: str
    run: str
    branch: str | None = None
    place: str | None = None


# What is asked for


def parse(text: str) -> Asked:
    """Raises `Invalid`."""
    match = _SIDE.fullmatch(text.strip())
    if match is None:
        raise Invalid(
            f"{text!r} is none of RUN, RUN:BRANCH, RUN@STEP, RUN@CHECKPOINT; for example gpt2-1, or gpt2-1:branch-2@300"
        )
    return Asked(text.strip(), match["run"], match["branch"], match["place"])


def choose(asked: Asked, run: Trajectories) -> Chosen:
    """The branch and the step that are meant. Raises `NotFound` with what there is."""
    checkpoint = None
    if asked.place is not None and not asked.place.isdecimal():
        checkpoint = _checkpoint(run, asked.place)
    branch = asked.branch or (checkpoint.branch if checkpoint else run.head)
    reached = {each.branch.branch: each.branch.reached_step for each in run.branches}
    if branch not in reached:
        raise NotFound(f"run {run.run} has no branch {branch!r}; it has {', '.join(reached)}", branches=list(reached))
    step = checkpoint.step if checkpoint else int(asked.place) if asked.place else reached[branch]
    if step > reached[branch]:
        raise NotFound(f"branch {branch} of run {run.run} has reached step {reached[branch]}, and not {step}")
    return Chosen(asked.name, run.run, branch, step)


def _checkpoint(run: Trajectories, name: str) -> CheckpointCommitted:
    found = next((each for each in run.checkpoints if each.checkpoint == name), None)
    if found is None:
        listed = ", ".join(each.checkpoint for each in run.checkpoints[-MAX_SIDES:]) or "none"
        raise NotFound(f"run {run.run} has no checkpoint {name!r}; the newest are {listed}")
    return found


# Trees


def tree(run: Trajectories, results: Iterable[Result], children: Iterable[RunSummary]) -> RunTree:
    """A run's tree. `results` are the losses of each branch from where it began."""
    by_branch: dict[str, dict[str, Result]] = {}
    for result in results:
        by_branch.setdefault(result.stretch.branch, {})[result.name] = result
    return RunTree(
        run=run.run,
        status=run.status,
        head=run.head,
        total_steps=run.total_steps,
        parent=run.parent,
        branches=tuple(_tree_branch(each, by_branch.get(each.branch.branch, {})) for each in _parents_first(run)),
        children=tuple(sorted(children, key=lambda child: child.created_at)),
    )


def own_stretches(run: Trajectories) -> tuple[Stretch, ...]:
    """What each branch has measured itself."""
    return tuple(Stretch(branch=each.branch.branch, first=each.branch.step) for each in run.branches)


def _tree_branch(found: Trajectory, results: Mapping[str, Result]) -> TreeBranch:
    lowest = ((name, results[name].lowest) for name in LOSSES if name in results)
    best = next((Best(name=name, step=each.step, value=each.value) for name, each in lowest if each), None)
    changes = tuple(each for each in found.interventions if not each.first)
    return TreeBranch(branch=found.branch, changes=changes, best=best)


def _parents_first(run: Trajectories) -> list[Trajectory]:
    """Depth first: under each branch its children, in the order in which they leave it."""

    def below(parent: str | None) -> list[Trajectory]:
        children = sorted(
            (each for each in run.branches if each.branch.parent == parent), key=lambda each: each.branch.step
        )
        return [found for child in children for found in (child, *below(child.branch.branch))]

    return below(None)


# Comparisons


def interventions(chosen: Chosen, runs: Mapping[str, Trajectories]) -> dict[tuple[str, UUID], Intervention]:
    """What was done on the line to `chosen`, oldest first."""
    run = runs[chosen.run]
    found: dict[tuple[str, UUID], Intervention] = {}
    views = [each.branch for each in run.branches]
    parent = origin_of(run, lineage(views, chosen.branch)[0].branch)
    if parent is not None and before(parent, chosen, runs):
        # What was decided there at that very step belongs to both, if the checkpoint was saved after it.
        saved = (each for each in runs[parent.run].checkpoints if each.checkpoint == parent.checkpoint)
        contained = {uuid for each in saved for uuid in each.decided_here}
        theirs = interventions(Chosen("", parent.run, parent.branch, parent.step), runs)
        found |= {at: each for at, each in theirs.items() if each.step < parent.step or each.uuid in contained}
    for each in run.branches:
        for done in each.interventions:
            where = each.branch.branch, done.step
            if done.step <= chosen.step and is_on_line(views, run.checkpoints, chosen.branch, where, done.uuid):
                found[run.run, done.uuid] = done
    return dict(sorted(found.items(), key=lambda item: item[1].step))


def knobs_at(chosen: Chosen, runs: Mapping[str, Trajectories]) -> dict[str, Any]:
    """The knobs as they were after `chosen.step`: as they were last, and what was changed in between taken back."""
    found = next(each for each in runs[chosen.run].branches if each.branch.branch == chosen.branch)
    knobs, whole = dict(found.knobs), Chosen("", chosen.run, chosen.branch, found.branch.reached_step)
    for done in reversed(interventions(whole, runs).values()):
        if done.step > chosen.step:
            knobs |= {name: value for name, value in done.before.items() if name in knobs}
    return {name: value for name, value in knobs.items() if name not in NOT_A_KNOB}


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a comparison needs of one side: since the lines part, and up to the last step that all have reached."""

    since: tuple[Result, ...] = ()
    at_common: tuple[Result, ...] = ()


def compare(chosen: Sequence[Chosen], runs: Mapping[str, Trajectories], measured: Sequence[Measurements]) -> Comparison:
    """The sides beside each other."""
    lines = [line(each, runs) for each in chosen]
    common, last = where_they_part(lines), min(each.step for each in chosen)
    done = [interventions(each, runs) for each in chosen]
    shared = set.intersection(*(set(each) for each in done))
    sides = tuple(
        Side(
            name=each.name,
            run=each.run,
            branch=each.branch,
            step=each.step,
            line=pieces,
            interventions=tuple(what for at, what in own.items() if at not in shared),
            outcomes=_outcomes(found),
        )
        for each, pieces, own, found in zip(chosen, lines, done, measured, strict=True)
    )
    rates = _learning_rates(measured, last)
    knobs = [*rates, *_differences([knobs_at(each, runs) for each in chosen])]
    return Comparison(common=common, last_common_step=last, sides=sides, knobs=tuple(knobs))


def _outcomes(found: Measurements) -> tuple[Outcome, ...]:
    made = []
    for name in LOSSES:
        since = [result for result in found.since if result.name == name]
        before = [result for result in found.at_common if result.name == name]
        lowest = [result.lowest for result in since if result.lowest is not None]
        outcome = Outcome(
            name=name,
            last=since[-1].last if since else None,
            best=min(lowest, key=lambda each: each.value, default=None),
            at_common=before[-1].last if before else None,
        )
        made += [outcome] if since or before else []
    return tuple(made)


def is_learning_rate(name: str) -> bool:
    """`lr`, or `lr/1` for the second parameter group."""
    return name == LEARNING_RATE or name.startswith(f"{LEARNING_RATE}/")


def _learning_rates(measured: Sequence[Measurements], step: int) -> list[Difference]:
    """At a step that all have reached: the schedule moves them, so that others cannot be compared."""
    sides = [{r.name: r.last.value for r in each.at_common if is_learning_rate(r.name)} for each in measured]
    names = sorted({name for side in sides for name in side}, key=lambda name: (len(name), name))
    rows = [Difference(knob=name, values=tuple(side.get(name) for side in sides), step=step) for name in names]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


def _differences(sides: Sequence[Mapping[str, Any]]) -> list[Difference]:
    names = dict.fromkeys(name for side in sides for name in side)
    rows = [Difference(knob=name, values=tuple(side.get(name) for side in sides)) for name in names]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


# Tables

UNKNOWN = "-"


def rows(found: Comparison) -> list[tuple[str, ...]]:
    """What each side came to, and the knobs that differ: a label, then a cell for each side."""
    return [*_results(found), *(_row(each) for each in found.knobs)]


def _results(found: Comparison) -> list[tuple[str, ...]]:
    names = dict.fromkeys(outcome.name for side in found.sides for outcome in side.outcomes)
    made = []
    for name in names:
        outcomes = [_outcome(side, name) for side in found.sides]
        made.append((f"last {name}", *(_spelled(each.last) for each in outcomes)))
        made.append((f"best {name}", *(_spelled(each.best) for each in outcomes)))
        made.append((f"{name} at step {found.last_common_step}", *(_spelled(each.at_common) for each in outcomes)))
    return made


def _outcome(side: Side, name: str) -> Outcome:
    return next((each for each in side.outcomes if each.name == name), Outcome(name=name))


def _spelled(found: Measured | None) -> str:
    return f"{found.value:.4g} (step {found.step})" if found else UNKNOWN


def _row(found: Difference) -> tuple[str, ...]:
    label = found.knob if found.step is None else f"{found.knob} at step {found.step}"
    return (label, *(UNKNOWN if value is None else spelled(value) for value in found.values))
