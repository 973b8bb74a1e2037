"""The invariants are worth their name: every planted mutant breaks one of them."""

import pytest

from tests.simulation.mutants.core_mutants import MUTANTS
from tests.simulation.mutants.recovery_mutants import BY_STORY as RECOVERY_BY_STORY
from tests.simulation.mutants.recovery_mutants import RECOVERY_MUTANTS
from tests.simulation.mutants.vocabulary_mutants import BY_STORY, VOCABULARY_MUTANTS
from tests.simulation.test_recovery import quiet, saved, settle
from tests.simulation.test_world import fleet_of, ticks
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import live_through
from tests.simulation.world.parts import Parts
from tests.simulation.world.world import World

MAX_SEEDS_TO_CATCH = 60
LEAST_MUTANTS = {"the rules of one command": 20, "all": 50}
"""So many are planted, at least: reliability.md, A11."""

PLANTED = MUTANTS | VOCABULARY_MUTANTS


@pytest.mark.parametrize("mutant", PLANTED)
def test_mutant_is_caught_by_an_invariant(mutant: str) -> None:
    with pytest.raises(Violation, match=r"^I\d+ "):
        live_through_seeds(PLANTED[mutant])


def live_through_seeds(parts: Parts) -> None:
    for seed in range(MAX_SEEDS_TO_CATCH):
        live_through(seed, actions=50, ranks=2, parts=parts, deadly=seed % 2 == 1)


def drifted(parts: Parts) -> World:
    """A rank holds another knob than the others, and nobody has changed it."""
    world = quiet(parts)
    world.drift(1)
    ticks(world, fleet_of(world).excused_until + 2)
    return world


def test_rank_whose_knob_has_drifted_is_found_when_knobs_are_compared() -> None:
    world = drifted(Parts())
    assert world.fleet is None
    with pytest.raises(Violation, match="I4 agreement: rank 1"):
        drifted(BY_STORY["knobs are never compared"])


def delete_the_pinned(parts: Parts) -> str | None:
    """An older checkpoint, which is pinned, is to be deleted; answers the reason if it is refused."""
    world = quiet(parts)
    name = saved(world)
    settle(world, factor=0.5)
    saved(world)
    world.submit("pin_checkpoint", checkpoint=name)
    return world.try_submit("delete_checkpoint", checkpoint=name)


def test_pinned_checkpoint_stays() -> None:
    assert "pinned" in str(delete_the_pinned(Parts()))
    with pytest.raises(Violation, match=r"I5 checkpoints: record \d+ .*, which is pinned"):
        delete_the_pinned(BY_STORY["a pinned checkpoint is deleted"])


def test_there_are_as_many_mutants_as_promised() -> None:
    everything = [*PLANTED, *RECOVERY_MUTANTS, *BY_STORY, *RECOVERY_BY_STORY]
    assert len(VOCABULARY_MUTANTS | BY_STORY) >= LEAST_MUTANTS["the rules of one command"]
    assert len(set(everything)) == len(everything) >= LEAST_MUTANTS["all"]
