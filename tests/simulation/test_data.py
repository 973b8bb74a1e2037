"""Changes of a run's sources in random histories: whatever dies, goes back or is repeated, all ranks draw the same
samples, which are those of a run that nobody ever disturbed, as a second implementation of the order draws them."""

from collections import Counter

import pytest

from control_plane.core.model.intents.data import DataIntent
from tests.simulation.world import samples
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import draw_through

KINDS = {kind for kind, _ in samples.DATA_KINDS}


def check_seed(seed: int, branches: bool) -> Counter[str]:
    """Live one history, and return what was applied; all that holds is checked at each of its steps."""
    world = draw_through(seed, branches=branches)
    fleet = world.fleet
    if fleet is not None and fleet.begun and fleet.step:
        steps = fleet.step + 3  # what loaders would fetch beyond, too
        due = samples.due(fleet.ranks[0].marks["data"], steps)
        for rank in fleet.ranks:
            assert samples.drawn(rank.marks["data"], steps) == due, f"seed {seed}, rank {rank.rank}"
    books = world.books
    applied = [uuid for uuid, outcome in books.settled.items() if outcome.status == "applied"]
    return Counter(books.accepted[uuid].intent.kind for uuid in applied if uuid in books.accepted)


@pytest.mark.parametrize("branches", [False, True])
def test_all_ranks_draw_the_same_and_what_an_undisturbed_run_draws(branches: bool) -> None:
    applied = Counter[str]()
    for seed in range(5):
        applied += check_seed(seed, branches)
    assert applied.keys() >= KINDS, "the histories reach every kind"


@pytest.mark.slow
@pytest.mark.parametrize("branches", [False, True])
def test_very_many_histories_of_data(branches: bool) -> None:
    for seed in range(100, 700):
        check_seed(seed, branches)


def test_rank_that_draws_otherwise_is_noticed() -> None:
    world = draw_through(1, actions=0)
    assert world.fleet is not None
    world.fleet.ranks[1].marks["data"] = [samples.change(0, {"kind": "set_mixture", "weights": {"web": 0.5}})]
    with pytest.raises(Violation, match="I4 agreement"):
        world.check()


def test_every_kind_is_a_change_of_data() -> None:
    assert {kind.model_fields["kind"].default for kind in DataIntent.__subclasses__()} == KINDS
