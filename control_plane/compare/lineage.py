"""Lineage of a branch: its own steps, and its parents' up to the fork points.

    main ----20----27            the line of branch-2 is main up to step 20, and its own steps from there on;
              \\                  it parts from main at step 20
               branch-2 ----60

The line of a fork, or of an adopted branch, begins with that of its parent in another run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from control_plane.api.messages import BranchView, StepRange, Trajectories
from control_plane.core.model.branch_tree import Branch, to_the_root
from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import CheckpointCommitted, Parent


class RunRange(Message):
    """Part of a line: a step range of one run."""

    run: str
    stretch: StepRange


class CommonPrefix(Message):
    """Fork point of lines: after `step` of this branch. Lines without common steps part before their first one."""

    step: int = 0
    run: str | None = None
    branch: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A resolved selector: a branch of a run, up to a step."""

    name: str
    run: str
    branch: str
    step: int


def lineage(branches: Iterable[BranchView], name: str, last: int | None = None) -> tuple[StepRange, ...]:
    """Return the step ranges that lead to a branch, the oldest first, up to step `last`."""
    ranges: list[StepRange] = []
    for branch in to_the_root(_by_name(branches), name):
        # A branch that begins after the last step contributes nothing.
        if last is None or branch.step <= last or branch.parent is None:
            ranges.append(StepRange(branch=branch.name, first=branch.step, last=last))
            last = branch.step
    return tuple(reversed(ranges))


def is_on_line(
    branches: Iterable[BranchView],
    checkpoints: Sequence[CheckpointCommitted],
    head: str,
    where: tuple[str, int],
    command: UUID,
) -> bool:
    """Return whether a command settled at `where` (branch, step) is part of the history of `head`.

    An approximation from views: after failures, when lineages cross, the journal is exact, see `core.branches`.
    """
    branch, step = where
    for child in to_the_root(_by_name(branches), head):
        if child.name == branch:
            return True
        if child.parent == branch:
            contained = (each.decided_here for each in checkpoints if each.checkpoint == child.checkpoint)
            return step < child.step or (step == child.step and command in next(contained, ()))
    return False


def _by_name(branches: Iterable[BranchView]) -> dict[str, Branch]:
    return {each.branch: Branch(each.branch, each.parent, each.checkpoint, each.step) for each in branches}


def line(chosen: Selection, runs: Mapping[str, Trajectories]) -> tuple[RunRange, ...]:
    """Return the lineage of `chosen`, preceded by the line of its origin in another run, if that run is known."""
    run = runs[chosen.run]
    own = lineage((each.branch for each in run.branches), chosen.branch, chosen.step)
    origin = origin_of(run, own[0].branch)
    if origin is None:
        return tuple(RunRange(run=chosen.run, stretch=stretch) for stretch in own)
    own = (own[0].model_copy(update={"first": origin.step}), *own[1:])
    here = tuple(RunRange(run=chosen.run, stretch=stretch) for stretch in own)
    return before(origin, chosen, runs) + here


def origin_of(run: Trajectories, branch: str) -> Parent | None:
    """Return the origin of a branch in another run, or None."""
    return next((each.branch.origin for each in run.branches if each.branch.branch == branch), None)


def origins(run: Trajectories) -> set[str]:
    """Return the other runs in which branches of this run start."""
    return {each.branch.origin.run for each in run.branches if each.branch.origin is not None}


def before(parent: Parent, child: Selection, runs: Mapping[str, Trajectories]) -> tuple[RunRange, ...]:
    """Return the line of `child`'s origin in another run; empty if that run or its branch is not known any more."""
    known = runs.get(parent.run)
    if known is None or parent.branch not in {each.branch.branch for each in known.branches}:
        return ()
    return line(Selection("", parent.run, parent.branch, min(parent.step, child.step)), runs)


def where_they_part(lines: Sequence[Sequence[RunRange]]) -> CommonPrefix:
    """Return the last step that all lines have in common."""
    common = CommonPrefix()
    for pieces in zip(*lines, strict=False):
        places = {(piece.run, piece.stretch.branch) for piece in pieces}
        if len(places) > 1:
            break
        ends = {piece.stretch.last or 0 for piece in pieces}
        ((run, branch),) = places
        common = CommonPrefix(step=min(ends), run=run, branch=branch)
        if len(ends) > 1:
            break
    return common


def cut(pieces: Iterable[RunRange], after: int, last: int) -> tuple[RunRange, ...]:
    """Return the part of a line after step `after`, up to `last`."""
    kept = []
    for piece in pieces:
        first = max(piece.stretch.first, after + 1)
        end = last if piece.stretch.last is None else min(piece.stretch.last, last)
        if first <= end:
            stretch = piece.stretch.model_copy(update={"first": first, "last": end})
            kept.append(piece.model_copy(update={"stretch": stretch}))
    return tuple(kept)


def depths(branches: Iterable[BranchView]) -> dict[str, int]:
    """Return the distance of each branch from the root."""
    known = _by_name(branches)
    return {name: sum(1 for _ in to_the_root(known, name)) - 1 for name in known}
