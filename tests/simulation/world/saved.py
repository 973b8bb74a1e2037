"""What the simulation keeps of a checkpoint."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from control_plane.core.model.records import MAIN


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint's files: the step, every rank's values, which commands they contain, and of which branch it is."""

    step: int = 0
    ranks: tuple[dict[str, Any], ...] = ()
    contained: frozenset[str] = frozenset()
    branch: str = MAIN
    is_damaged: bool = False

    @property
    def effects(self) -> tuple[UUID, ...]:
        """The commands that its values carry, in order."""
        return tuple(self.ranks[0]["effects"]) if self.ranks else ()


BEGINNING = Saved()
