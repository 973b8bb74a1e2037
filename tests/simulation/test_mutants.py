"""The invariants are worth their name: every planted mutant breaks one of them."""

import pytest

from tests.simulation.fleet import Violation
from tests.simulation.histories import live_through
from tests.simulation.mutants import MUTANTS
from tests.simulation.parts import Parts

MAX_SEEDS_TO_CATCH = 60


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught_by_an_invariant(mutant: str) -> None:
    with pytest.raises(Violation, match=r"^I\d+ "):
        live_through_seeds(MUTANTS[mutant])


def live_through_seeds(parts: Parts) -> None:
    for seed in range(MAX_SEEDS_TO_CATCH):
        live_through(seed, actions=50, ranks=2, parts=parts, deadly=seed % 2 == 1)
