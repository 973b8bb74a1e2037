"""Trees and comparisons: asks the runs for what `comparing` puts side by side."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from control_plane.api.handle import MetricSummary, Trajectories
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
from control_plane.core.model.limits import LEARNING_RATE

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory

MAX_GROUPS = 8
"""Parameter groups whose learning rates are compared."""

RATES = (LEARNING_RATE, *(f"{LEARNING_RATE}/{group}" for group in range(1, MAX_GROUPS)))


async def tree_of(directory: "RunDirectory", run: str) -> RunTree:
    """A run's tree, with the runs that have it as their parent."""
    handle = await directory.handle(run)
    found = await handle.trajectories()
    results = await handle.results(own_stretches(found), LOSSES)
    children = [each for each in await directory.list() if each.parent is not None and each.parent.run == found.run]
    return tree(found, results, children)


async def comparison_of(directory: "RunDirectory", names: Sequence[str]) -> Comparison:
    """The sides of these names beside each other. Raises `Invalid`, `NotFound`."""
    if not 2 <= len(names) <= MAX_SIDES:
        raise Invalid(f"2 to {MAX_SIDES} runs or branches can be compared, and not {len(names)}")
    asked = [parse(name) for name in names]
    runs: dict[str, Trajectories] = {}
    for each in asked:
        runs[each.run] = runs.get(each.run) or await (await directory.handle(each.run)).trajectories()
    chosen = [choose(each, runs[each.run]) for each in asked]
    await _add_ancestors(directory, runs)
    lines = [line(each, runs) for each in chosen]
    parted, last = where_they_part(lines), min(each.step for each in chosen)
    # What lines that have nothing in common measured at step 0 is their own, too.
    after = parted.step if parted.run else -1
    measured = [
        SideMetrics(
            since=await _results(directory, cut(pieces, after, each.step), LOSSES),
            at_common=await _results(directory, cut(pieces, parted.step - 1, last), (*LOSSES, *RATES)),
        )
        for each, pieces in zip(chosen, lines, strict=True)
    ]
    return compare(chosen, runs, measured)


async def _add_ancestors(directory: "RunDirectory", runs: dict[str, Trajectories]) -> None:
    """The runs in which branches begin, as far as they are still there: without them a line begins at its fork."""
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
    """In the order of the line: forks come after their parents."""
    found: list[MetricSummary] = []
    for run, of_run in groupby(pieces, key=lambda piece: piece.run):
        handle = await directory.handle(run)
        found += await handle.results(tuple(piece.stretch for piece in of_run), names)
    return tuple(found)
