"""Health state in a checkpoint: what rank 0's checks have restored, and what they would save now."""

from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.core.model.records import Readback


@dataclass(eq=False)
class HealthMemory:
    """State of the health checks of one training; empty on ranks other than 0, and where the checks are off."""

    # Returns what a checkpoint holds now.
    state: Callable[[], Readback] = dict
    # What the restored checkpoint held.
    restored: Readback = field(default_factory=dict)
