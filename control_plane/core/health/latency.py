"""Latest time of each kind of alert: steps, gathers or windows from the onset of a clear fault to its alert."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.health import AlertKind

Unit = Literal["step", "gather", "hook", "evaluation", "window"]


@dataclass(frozen=True, slots=True)
class Latest:
    """Bound on the time from onset to alert, in the unit in which the sign of the kind is measured."""

    count: int
    unit: Unit

    def __str__(self) -> str:
        """`2 steps`, `1 gather`."""
        return f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"


LATEST: Mapping[AlertKind, Latest] = {
    "non_finite": Latest(1, "step"),
    "gradient_overflow": Latest(1, "step"),
    "loss_scale_exhausted": Latest(1, "step"),
    "loss_spike": Latest(2, "step"),
    "gradient_spike": Latest(2, "step"),
    "slow_divergence": Latest(2, "window"),
    "plateau": Latest(2, "window"),
    # Two that confirm it, and before them one that may come a step after the onset, and see nothing yet.
    "forgetting": Latest(3, "evaluation"),
    "dead_units": Latest(2, "hook"),
    "vanishing_layer": Latest(2, "gather"),
    "exploding_layer": Latest(2, "gather"),
    "attention_blow_up": Latest(2, "hook"),
    "straggling_rank": Latest(2, "gather"),
    "stalled_phase": Latest(1, "step"),
    "data_starvation": Latest(20, "step"),
    "memory_near_limit": Latest(3, "step"),
    "checkpoint_too_old": Latest(1, "gather"),
    "bad_dynamics": Latest(60, "step"),
}
"""Bounds with the default settings, for a fault that stays and is well beyond its threshold."""


def latest_steps(
    kind: AlertKind, settings: HealthSettings, *, onset: int, gather_steps: int = 10, evaluation_steps: int = 100
) -> int:
    """Return the bound of a kind in steps after the onset.

    Args:
        onset: step of the onset; the windows of a plateau grow with the steps so far.
        gather_steps: the log interval, from one gather of all ranks' signs to the next.
        evaluation_steps: steps from one evaluation to the next.
    """
    bound = LATEST[kind]
    match bound.unit:
        case "step":
            return bound.count
        case "gather":
            return bound.count * gather_steps
        case "hook":
            return bound.count * settings.hook_steps
        case "evaluation":
            return bound.count * evaluation_steps
        case "window" if kind == "plateau":
            # Two windows that have grown until then, and the block in progress at the onset.
            share = bound.count * settings.plateau.window_share
            grown = onset * share / (1.0 - share)
            return ceil(max(bound.count * settings.plateau.window_steps, grown) + settings.plateau.window_steps / 5)
        case _:
            return bound.count * settings.divergence.window_steps
