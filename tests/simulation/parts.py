"""What a world is built of, and what it keeps of a checkpoint."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from control_plane.core.boundary import Replica, boundary
from control_plane.core.recovery import Decided, Replay, replay_after
from tests.simulation.fleet import Boundary
from tests.simulation.rank import SimRank
from tests.simulation.server import Disk, Rules


@dataclass(frozen=True, slots=True)
class Parts:
    """What the world is built of. A mutant is a world with one other part."""

    rules: Rules = field(default_factory=Rules)
    disk: type[Disk] = Disk
    boundary: Boundary = boundary
    replica: type[Replica] = Replica
    rank: Callable[..., SimRank] = SimRank
    replay: Callable[[Sequence[Decided], Collection[str]], Replay] = replay_after


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint's files: the step, every rank's values, and which commands they contain."""

    step: int = 0
    ranks: tuple[dict[str, Any], ...] = ()
    contained: frozenset[str] = frozenset()
    is_damaged: bool = False


BEGINNING = Saved()
