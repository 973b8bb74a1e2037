"""Trees and comparisons of runs: collects from the runs what `comparing` compares."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from control_plane.api.messages import MetricSummary, Trajectories
from control_plane.compare.comparison import (
    LOSSES,
    MAX_ANCESTORS,
    MAX_SIDES,
    Comparison,
    RunTree,
    SideMetrics,
    choose,
    compare,
    own_stretches,
    parse,
    tree,
)
from control_plane.compare.lineage import RunRange, cut, line, origins, where_they_part
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.core.model.intent_base import LEARNING_RATE

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory

MAX_GROUPS = 8
"""Most parameter groups whose learning rates are compared."""

RATES = (LEARNING_RATE, *(f"{LEARNING_RATE}/{group}" for group in range(1, MAX_GROUPS)))


async def tree_of(directory: "RunDirectory", run: str) -> RunTree:
    """Return a run's tree, with the runs that were started from it."""
    handle = await directory.handle(run)
    own = await handle.trajectories()
    results = await handle.results(own_stretches(own), LOSSES)
    children = [other for other in await directory.list() if other.parent is not None and other.parent.run == own.run]
    return tree(own, results, children)


async def comparison_of(directory: "RunDirectory", names: Sequence[str]) -> Comparison:
    """Compare the runs or branches of these names. Raises `Invalid`, `NotFound`."""
    if not 2 <= len(names) <= MAX_SIDES:
        raise Invalid(f"a comparison takes 2 to {MAX_SIDES} runs or branches, not {len(names)}")
    sides = [parse(name) for name in names]
    runs: dict[str, Trajectories] = {}
    for side in sides:
        runs[side.run] = runs.get(side.run) or await (await directory.handle(side.run)).trajectories()
    chosen = [choose(side, runs[side.run]) for side in sides]
    await _add_ancestors(directory, runs)
    lines = [line(choice, runs) for choice in chosen]
    parted, last = where_they_part(lines), min(choice.step for choice in chosen)
    # Without a common step, measurements at step 0 are each line's own, too.
    after = parted.step if parted.run else -1
    measured = [
        SideMetrics(
            since=await _results(directory, cut(pieces, after, choice.step), LOSSES),
            at_common=await _results(directory, cut(pieces, parted.step - 1, last), (*LOSSES, *RATES)),
        )
        for choice, pieces in zip(chosen, lines, strict=True)
    ]
    return compare(chosen, runs, measured)


async def _add_ancestors(directory: "RunDirectory", runs: dict[str, Trajectories]) -> None:
    """Add the runs in which branches start, if they still exist; without them a line starts at its fork."""
    gone: set[str] = set()
    for _ in range(MAX_ANCESTORS):
        for name in set[str]().union(*map(origins, runs.values())) - set(runs) - gone:
            try:
                runs[name] = await (await directory.handle(name)).trajectories()
            except SteerwayError:
                gone.add(name)


async def _results(
    directory: "RunDirectory", pieces: Sequence[RunRange], names: tuple[str, ...]
) -> tuple[MetricSummary, ...]:
    """Return results in the order of the line: forks come after their parents."""
    results: list[MetricSummary] = []
    for run, of_run in groupby(pieces, key=lambda piece: piece.run):
        handle = await directory.handle(run)
        results += await handle.results(tuple(piece.stretch for piece in of_run), names)
    return tuple(results)
