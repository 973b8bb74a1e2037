"""`steer data weak`: sources, and slices of them, by the loss on what they hold out."""

import dataclasses
from typing import TYPE_CHECKING

from control_plane.cli.commands.show import AsJson, Run, print_table
from control_plane.cli.data.records import loss_with_error
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.core.health.weak_spots import weakest
from control_plane.core.model.characters import one_line

if TYPE_CHECKING:
    from control_plane.core.health.weak_spots import WeakSpot


def weak(run: Run = None, as_json: AsJson = False) -> None:
    """Rank the sources of a run, and slices of them, by the loss on the records that they hold out: highest first."""
    with connect() as client:
        chosen = any_run(client, run)
        spots = client.weak_spots(chosen)
        holding = [] if spots else [one.name for one in client.data(chosen).sources if one.mixture.get("held_out")]
    if as_json:
        tell_json([dataclasses.asdict(spot) for spot in spots])
        return
    if not spots:
        tell(_nothing(chosen, holding))
        return
    print_table(("SOURCE", "HELD-OUT LOSS", "CHANGE", "STEP", "EVALUATIONS"), [_row(spot) for spot in spots])
    tell(one_line(_conclusion(spots)))


def _nothing(run: str, holding: list[str]) -> str:
    if holding:
        return f"{run} has not been evaluated: `steer evaluate {run}`, or set training.eval_steps"
    return f"no source of {run} holds records out: give one `held_out: 0.05` in the config"


def _row(spot: "WeakSpot") -> tuple[str, ...]:
    change = "-" if spot.change is None else f"{spot.change:+.3g}{'' if spot.has_changed else ' (noise)'}"
    return spot.name, loss_with_error(spot.loss, spot.error), change, str(spot.step), str(spot.evaluations)


def _conclusion(spots: "list[WeakSpot]") -> str:
    first = weakest(spots)
    assert first is not None
    others = [spot for spot in spots if spot.name != first.name and spot.source != first.source]
    if not others:
        return f"weakest: {first.name}"
    second = weakest(others)
    assert second is not None
    how = "" if first.is_clearly_above(second) else ", but not by more than noise"
    return f"weakest: {first.name}, above {second.name}{how}"
