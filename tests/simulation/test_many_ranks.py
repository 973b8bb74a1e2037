"""The same boundary on 4,096 ranks."""

from tests.simulation.world.faults import Faults
from tests.simulation.world.world import World

RANKS = 4096


def test_boundaries_of_4096_ranks_apply_reject_and_undo_together() -> None:
    world = World(ranks=RANKS, faults=Faults().refuse(rank=4095, at_step=5).misapply(rank=2048, at_step=7))
    world.start_trainers()
    for step, rate in ((3, 1e-4), (5, 2e-4), (7, 3e-4)):
        world.submit("set_learning_rate", value=rate, not_before_step=step)
    for _ in range(11):
        world.tick()
    outcomes = list(world.books.settled.values())
    assert [(outcome.status, outcome.step) for outcome in outcomes] == [("applied", 3), ("rejected", 5), ("failed", 7)]
    assert (outcomes[0].world_size, outcomes[0].ranks) == (RANKS, ())
    assert outcomes[1].reason == "rank 4095: it cannot"
    assert (outcomes[2].reason or "").startswith("rank 2048 read")
    assert world.fleet is not None
    assert all(rank.rates == [1e-4, 1e-4] for rank in world.fleet.ranks)
    assert len(world.fleet.ranks) == RANKS
