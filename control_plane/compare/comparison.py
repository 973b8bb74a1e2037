"""Comparison of branches and runs: trees, and differences since the fork point.

Pure functions on the runs' messages. The caller supplies the measurements over step ranges.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from control_plane.api.messages import (
    BranchView,
    Intervention,
    MeasuredValue,
    MetricSummary,
    RunSummary,
    StepRange,
    Trajectories,
    Trajectory,
)
from control_plane.api.sentences import format_value
from control_plane.compare.lineage import (
    CommonPrefix,
    RunRange,
    Selection,
    before,
    is_on_line,
    line,
    lineage,
    origin_of,
    where_they_part,
)
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.intent_base import LEARNING_RATE, Message
from control_plane.core.model.records import CheckpointCommitted, Parent

LOSSES = ("eval_loss", "loss")
"""Metrics that rank a branch: the first that it has measured counts."""

MAX_SIDES = 8
"""More lines than this in one chart cannot be told apart."""

MAX_ANCESTORS = 16
"""Runs that are read for the beginning of a line: forks of forks."""

NOT_A_KNOB = frozenset({"groups", "schedule", LEARNING_RATE})
"""Readback fields that are no knobs: names, and values that the schedule changes at every step."""

_SIDE = re.compile(r"(?P<run>[^:@]+)(?::(?P<branch>[^:@]+))?(?:@(?P<place>[^:@]+))?")


class Best(Message):
    """The lowest loss of a branch; of the evaluations if there are any."""

    name: str
    step: int
    value: float


class TreeBranch(Message):
    """One branch of a tree. `changes` were made after it began; its initial changes are `branch.first`."""

    branch: BranchView
    changes: tuple[Intervention, ...] = ()
    best: Best | None = None


class RunTree(Message):
    """A run's branches, parents before children, and the runs forked or replayed from it."""

    run: str
    status: str
    head: str
    total_steps: int
    parent: Parent | None = None
    branches: tuple[TreeBranch, ...]
    children: tuple[RunSummary, ...] = ()


class MetricOutcome(Message):
    """A metric on one side: since the fork point, and at the last step that all sides have reached."""

    name: str
    last: MeasuredValue | None = None
    best: MeasuredValue | None = None
    at_common: MeasuredValue | None = None


class Side(Message):
    """One side of a comparison, up to `step`. `line`: the run ranges from the first step to it."""

    name: str
    run: str
    branch: str
    step: int
    line: tuple[RunRange, ...]
    interventions: tuple[Intervention, ...] = ()
    outcomes: tuple[MetricOutcome, ...] = ()


class Difference(Message):
    """A knob that differs between the sides; its values in their order, null if unknown.

    With `step`: as measured there; else as last set.
    """

    knob: str
    values: tuple[Any, ...]
    step: int | None = None


class Comparison(Message):
    """Result of a comparison. `last_common_step`: the last step that all sides have reached."""

    common: CommonPrefix
    last_common_step: int
    sides: tuple[Side, ...]
    knobs: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector: `RUN` or `RUN:BRANCH`, optionally with `@STEP` or `@CHECKPOINT`."""

    name: str
    run: str
    branch: str | None = None
    place: str | None = None


# Selectors


def parse(text: str) -> Selector:
    """Parse a selector. Raises `Invalid`."""
    match = _SIDE.fullmatch(text.strip())
    if match is None:
        raise Invalid(
            f"{text!r} is none of RUN, RUN:BRANCH, RUN@STEP, RUN@CHECKPOINT; for example gpt2-1, or gpt2-1:branch-2@300"
        )
    return Selector(text.strip(), match["run"], match["branch"], match["place"])


def choose(asked: Selector, run: Trajectories) -> Selection:
    """Resolve a selector to a branch and a step. Raises `NotFound`, listing the existing ones."""
    checkpoint = None
    if asked.place is not None and not asked.place.isdecimal():
        checkpoint = _checkpoint(run, asked.place)
    branch = asked.branch or (checkpoint.branch if checkpoint else run.head)
    reached = {each.branch.branch: each.branch.reached_step for each in run.branches}
    if branch not in reached:
        raise NotFound(f"run {run.run} has no branch {branch!r}; it has {', '.join(reached)}", branches=list(reached))
    step = checkpoint.step if checkpoint else int(asked.place) if asked.place else reached[branch]
    if step > reached[branch]:
        raise NotFound(f"branch {branch} of run {run.run} has reached step {reached[branch]}, not {step}")
    return Selection(asked.name, run.run, branch, step)


def _checkpoint(run: Trajectories, name: str) -> CheckpointCommitted:
    checkpoint = next((each for each in run.checkpoints if each.checkpoint == name), None)
    if checkpoint is None:
        listed = ", ".join(each.checkpoint for each in run.checkpoints[-MAX_SIDES:]) or "none"
        raise NotFound(f"run {run.run} has no checkpoint {name!r}; the newest are {listed}")
    return checkpoint


# Trees


def tree(run: Trajectories, results: Iterable[MetricSummary], children: Iterable[RunSummary]) -> RunTree:
    """Return a run's tree. `results`: the losses of each branch since its beginning."""
    by_branch: dict[str, dict[str, MetricSummary]] = {}
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


def own_stretches(run: Trajectories) -> tuple[StepRange, ...]:
    """Return the step range of each branch since its own beginning."""
    return tuple(StepRange(branch=each.branch.branch, first=each.branch.step) for each in run.branches)


def _tree_branch(found: Trajectory, results: Mapping[str, MetricSummary]) -> TreeBranch:
    lowest = ((name, results[name].lowest) for name in LOSSES if name in results)
    best = next((Best(name=name, step=each.step, value=each.value) for name, each in lowest if each), None)
    changes = tuple(each for each in found.interventions if not each.first)
    return TreeBranch(branch=found.branch, changes=changes, best=best)


def _parents_first(run: Trajectories) -> list[Trajectory]:
    """Return the branches depth first, children in the order of their fork points."""

    def below(parent: str | None) -> list[Trajectory]:
        children = sorted(
            (each for each in run.branches if each.branch.parent == parent), key=lambda each: each.branch.step
        )
        return [found for child in children for found in (child, *below(child.branch.branch))]

    return below(None)


# Comparisons


def interventions(chosen: Selection, runs: Mapping[str, Trajectories]) -> dict[tuple[str, UUID], Intervention]:
    """Return the interventions on the line to `chosen`, oldest first, by run and command."""
    run = runs[chosen.run]
    collected: dict[tuple[str, UUID], Intervention] = {}
    views = [each.branch for each in run.branches]
    parent = origin_of(run, lineage(views, chosen.branch)[0].branch)
    if parent is not None and before(parent, chosen, runs):
        # Commands decided at the very step of the fork belong to both, if the checkpoint was saved after them.
        saved = (each for each in runs[parent.run].checkpoints if each.checkpoint == parent.checkpoint)
        contained = {uuid for each in saved for uuid in each.decided_here}
        theirs = interventions(Selection("", parent.run, parent.branch, parent.step), runs)
        collected |= {at: each for at, each in theirs.items() if each.step < parent.step or each.uuid in contained}
    for each in run.branches:
        for done in each.interventions:
            where = each.branch.branch, done.step
            if done.step <= chosen.step and is_on_line(views, run.checkpoints, chosen.branch, where, done.uuid):
                collected[run.run, done.uuid] = done
    return dict(sorted(collected.items(), key=lambda item: item[1].step))


def knobs_at(chosen: Selection, runs: Mapping[str, Trajectories]) -> dict[str, Any]:
    """Return the knobs after `chosen.step`: the last known ones with later changes reverted."""
    trajectory = next(each for each in runs[chosen.run].branches if each.branch.branch == chosen.branch)
    knobs, whole = dict(trajectory.knobs), Selection("", chosen.run, chosen.branch, trajectory.branch.reached_step)
    for done in reversed(interventions(whole, runs).values()):
        if done.step > chosen.step:
            knobs |= {name: value for name, value in done.before.items() if name in knobs}
    return {name: value for name, value in knobs.items() if name not in NOT_A_KNOB}


@dataclass(frozen=True, slots=True)
class SideMetrics:
    """Measurements of one side: since the fork point, and up to the last step that all sides have reached."""

    since: tuple[MetricSummary, ...] = ()
    at_common: tuple[MetricSummary, ...] = ()


def compare(
    chosen: Sequence[Selection], runs: Mapping[str, Trajectories], measured: Sequence[SideMetrics]
) -> Comparison:
    """Compare the sides: outcomes, interventions since the fork point, and differing knobs."""
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


def _outcomes(found: SideMetrics) -> tuple[MetricOutcome, ...]:
    made = []
    for name in LOSSES:
        since = [result for result in found.since if result.name == name]
        before = [result for result in found.at_common if result.name == name]
        lowest = [result.lowest for result in since if result.lowest is not None]
        outcome = MetricOutcome(
            name=name,
            last=since[-1].last if since else None,
            best=min(lowest, key=lambda each: each.value, default=None),
            at_common=before[-1].last if before else None,
        )
        made += [outcome] if since or before else []
    return tuple(made)


def is_learning_rate(name: str) -> bool:
    """Return whether a metric is a learning rate: `lr`, or `lr/1` for the second parameter group."""
    return name == LEARNING_RATE or name.startswith(f"{LEARNING_RATE}/")


def _learning_rates(measured: Sequence[SideMetrics], step: int) -> list[Difference]:
    """Compare learning rates at a step that all sides have reached: the schedule changes them at every step."""
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
    """Return table rows of outcomes and differing knobs: a label, then a cell for each side."""
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


def _outcome(side: Side, name: str) -> MetricOutcome:
    return next((each for each in side.outcomes if each.name == name), MetricOutcome(name=name))


def _spelled(found: MeasuredValue | None) -> str:
    return f"{found.value:.4g} (step {found.step})" if found else UNKNOWN


def _row(found: Difference) -> tuple[str, ...]:
    label = found.knob if found.step is None else f"{found.knob} at step {found.step}"
    return (label, *(UNKNOWN if value is None else format_value(value) for value in found.values))
