"""What a world is built of."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from control_plane.core.boundary import Replica, boundary
from control_plane.core.rules.branch_rules import ScheduledCommand
from control_plane.core.rules.recovery import Decided, Replay, replay_after
from tests.simulation.world.fleet import Boundary
from tests.simulation.world.rank import SimRank
from tests.simulation.world.server import Disk, Rules


@dataclass(frozen=True, slots=True)
class Parts:
    """What the world is built of. A mutant is a world with one other part."""

    rules: Rules = field(default_factory=Rules)
    disk: type[Disk] = Disk
    boundary: Boundary = boundary
    replica: type[Replica] = Replica
    rank: Callable[..., SimRank] = SimRank
    replay: Callable[[Sequence[Decided], Collection[str], Sequence[ScheduledCommand]], Replay] = replay_after
