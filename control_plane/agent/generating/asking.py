"""Request to a generator: so many records for a weak spot, with examples of its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from control_plane.core.health.weak_spots import WeakSpot
from control_plane.core.model.data import SourceSettings

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for records.

    target: settings of the source that they go to. sources: those of all sources, by name.
    seed: differs from batch to batch, and is the same for a repeated one.
    """

    run: str
    generator: str
    spot: WeakSpot
    count: int
    seed: int
    target: SourceSettings
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)


class Writer(Protocol):
    """Writer of records. May raise `Unavailable`, and `Refused` if it will not be better next time."""

    def write(self, asked: Asked) -> list[Record]:
        """Return at most `asked.count` records, none of which is checked."""
        ...
