"""Rollbacks: the head is exactly its lineage, whatever dies, wherever the run is taken."""

from typing import Any

import pytest

from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import GenerationLost
from control_plane.core.rules.crash_loop import SAME_FAILURES
from tests.simulation.mutants.branch_mutants import BRANCH_MUTANTS, BY_STORY
from tests.simulation.test_recovery import quiet, saved, settle, starts
from tests.simulation.test_world import fleet_of, ticks
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import wander_through
from tests.simulation.world.parts import Parts
from tests.simulation.world.rank import FIRST_RATES
from tests.simulation.world.world import World

MAX_SEEDS_TO_CATCH = 60
ACTIONS = 100
SHOWN_BY = {
    "a branch has no history of its parent": 74,
    "nothing of the step where a branch begins is its history": 74,
    "later checkpoints of a parent are candidates": 40,
    "what another branch begins with is done on this one": 15,
    "pauses are repeated on a branch": 3,
    "a branch is as paused as its parent": 3,
    "a proposal goes on after a rollback": 3,
    "trainers stay after a rollback": 2,
    "an adopted branch stands on the head": 96,
    "what a branch stands on is retired": 2,
}
"""Seeds that are tried first: those that show what few seeds show."""


def roll(world: World, **body: Any) -> str:
    """Go back or on, and train there; answers the branch."""
    begun = len(starts(world))
    world.submit("rollback", **body)
    for _ in range(20):
        world.tick()
        if len(starts(world)) > begun and fleet_of(world).begun:
            return world.books.history.head
    raise AssertionError("no trainers have begun")


def rates(world: World) -> list[float]:
    return fleet_of(world).ranks[1].rates


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_random_rollbacks_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        wander_through(seed, actions=ACTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(10_000, 14_000, 500))
def test_very_many_random_rollbacks_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 500):
        wander_through(seed, actions=120, ranks=2 + seed % 3)


def test_random_rollbacks_reach_every_way_of_a_branch() -> None:
    """Guards the tests above: histories that stay on one branch would prove nothing."""
    worlds = [wander_through(seed, actions=ACTIONS) for seed in range(24)]
    asked = [
        (command.intent, world.books.settled[uuid])
        for world in worlds
        for uuid, command in world.books.accepted.items()
        if isinstance(command.intent, Rollback)
    ]
    assert {outcome.status for _, outcome in asked} >= {"applied", "rejected"}
    applied = [(intent, outcome) for intent, outcome in asked if outcome.status == "applied"]
    assert any(intent.checkpoint is None for intent, _ in applied)
    assert any(intent.first for intent, _ in applied)
    assert {outcome.generation is None for _, outcome in applied} == {True, False}
    parents = [
        branch.parent for world in worlds if world.server for branch in world.server.state.tree.branches.values()
    ]
    assert any(parent not in (None, "main") for parent in parents)
    assert any(world.books.discarded for world in worlds)
    adopted = [
        branch.name
        for world in worlds
        if world.server
        for branch in world.server.state.tree.branches.values()
        if branch.origin and any(start.branch == branch.name for start in starts(world))
    ]
    assert len(adopted) > 3, "some are trained"
    assert any(start.refused and start.branch != "main" for world in worlds for start in starts(world))


@pytest.mark.parametrize("mutant", BRANCH_MUTANTS)
def test_mutant_of_the_branches_is_caught_by_an_invariant(mutant: str) -> None:
    with pytest.raises(Violation, match=r"^I\d+ "):
        wander_through_seeds(BRANCH_MUTANTS[mutant], SHOWN_BY.get(mutant, 0))


def wander_through_seeds(parts: Parts, first: int) -> None:
    for seed in [first, *range(MAX_SEEDS_TO_CATCH)]:
        wander_through(seed, actions=ACTIONS, parts=parts)


# Stories


def decided_beside_the_save(parts: Parts) -> World:
    """Paused: a save that takes its time, and a command at the same step after it. The run goes back to that save."""
    world = quiet(parts)
    settle(world, "pause")
    settle(world, factor=0.5)
    base = world.save()
    assert world.link is not None
    written = world.link.saved.pop(base)
    assert settle(world, factor=0.1) == written.step, "at the same boundary"
    world.link.saved[base] = written
    ticks(world, 2)
    roll(world, checkpoint=base)
    ticks(world, 5)
    return world


def test_command_of_the_step_of_a_save_is_history_if_it_came_before_it() -> None:
    world = decided_beside_the_save(Parts())
    assert rates(world) == [rate / 2 for rate in FIRST_RATES]
    assert not fleet_of(world).held, "a pause does not outlive a rollback"


def parent_goes_another_way(parts: Parts) -> World:
    """A branch begins at the second save; the parent goes on from the first, is steered before the second, and left."""
    world = quiet(parts)
    saved(world)
    ticks(world, 8)
    second = saved(world)
    roll(world, checkpoint=second)
    world.damage_checkpoint(second)
    roll(world, branch="main")
    assert fleet_of(world).step < world.files[second].step
    assert settle(world, factor=0.5) < world.files[second].step
    world.damage_checkpoint(second)
    ticks(world, 12)
    roll(world, branch="branch-2")
    ticks(world, 5)
    return world


def test_what_a_parent_does_later_at_earlier_steps_is_its_own() -> None:
    world = parent_goes_another_way(Parts())
    assert starts(world)[-1].checkpoint == "1", "which the parent has abandoned, and the branch stands on"
    assert rates(world) == list(FIRST_RATES)


def branch_of_a_branch(parts: Parts) -> World:
    """A branch whose base is damaged begins before it, and another leaves it before it has got there."""
    world = quiet(parts)
    saved(world)
    ticks(world, 8)
    settle(world, factor=0.5)
    second = saved(world)
    roll(world, checkpoint=second)
    world.damage_checkpoint(second)
    world.start_trainers()
    ticks(world, 4)
    third = saved(world)
    assert world.files[third].step < world.files[second].step
    ticks(world, 12)
    assert roll(world, checkpoint=third) == "branch-3"
    ticks(world, 12)
    return world


def test_what_a_branch_left_behind_repeats_is_no_history_of_one_that_left_it_before() -> None:
    assert rates(branch_of_a_branch(Parts())) == list(FIRST_RATES)


def test_base_that_can_be_read_again_is_not_gone_back_to_when_its_branch_has_trained_from_before_it() -> None:
    world = branch_of_a_branch(Parts())
    world.damage_checkpoint("1")
    roll(world, branch="branch-2")
    assert starts(world)[-1].checkpoint == "2"


def cancelled_elsewhere(parts: Parts) -> World:
    """A cancel for a later step, of what was applied before it; the run goes back to where it was not applied yet."""
    world = quiet(parts)
    base = saved(world)
    asked = world.submit("set_learning_rate", factor=0.5)
    world.submit("cancel", command=str(asked.uuid), not_before_step=30)
    ticks(world, 4)
    roll(world, checkpoint=base)
    ticks(world, 40)
    return world


def test_cancel_of_what_was_applied_on_another_branch_is_rejected() -> None:
    world = cancelled_elsewhere(Parts())
    (cancel,) = [uuid for uuid, each in world.books.accepted.items() if each.intent.kind == "cancel"]
    assert world.books.settled[cancel].status == "rejected"
    assert "already applied" in str(world.books.settled[cancel].reason)


@pytest.mark.parametrize(
    ("mutant", "story"),
    [
        ("the ledger is not carried to other branches", cancelled_elsewhere),
        ("all of the step where a branch begins is its history", decided_beside_the_save),
        ("what a parent does later at earlier steps is repeated", parent_goes_another_way),
        ("only the nearest cut is looked at", branch_of_a_branch),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_mutant_of_the_branches_is_caught_by_a_story(mutant: str, story: Any) -> None:
    with pytest.raises(Violation, match=r"^I\d+ "):
        story(BY_STORY[mutant])


def test_there_are_as_many_mutants_of_the_branches_as_promised() -> None:
    assert len(BRANCH_MUTANTS | BY_STORY) >= 20


def test_branch_begins_with_its_changes_before_its_first_step_and_again_after_a_loss() -> None:
    world = quiet()
    base = saved(world)
    roll(world, checkpoint=base, first=[{"kind": "set_learning_rate", "factor": 0.1}])
    assert fleet_of(world).step == world.files[base].step
    assert rates(world) == pytest.approx([rate / 10 for rate in FIRST_RATES])
    world.start_trainers()
    ticks(world, 8)
    assert rates(world) == pytest.approx([rate / 10 for rate in FIRST_RATES])


def test_what_a_branch_that_was_left_at_once_begins_with_waits_for_it() -> None:
    world = quiet()
    base = saved(world)
    world.submit("rollback", checkpoint=base, first=[{"kind": "set_learning_rate", "factor": 0.1}])
    while world.books.history.head == "main":
        world.tick()
    world.lose_everything()
    world.restart_server()
    world.resume_run()
    world.submit("rollback", checkpoint=base)
    world.start_trainers()
    ticks(world, 6)
    assert (fleet_of(world).branch, rates(world)) == ("branch-3", list(FIRST_RATES))
    roll(world, branch="branch-2")
    assert rates(world) == pytest.approx([rate / 10 for rate in FIRST_RATES])


def test_rollback_to_a_damaged_checkpoint_is_rejected_and_training_goes_on() -> None:
    world = quiet()
    base = saved(world)
    world.damage_checkpoint(base)
    before = fleet_of(world)
    settle(world, "rollback", checkpoint=base)
    assert [each.status for each in world.books.settled.values()] == ["rejected"]
    assert fleet_of(world) is before


def test_finished_run_that_is_taken_back_begins_there_and_one_that_is_not_does_not() -> None:
    world = quiet()
    base = saved(world)
    world.total_steps = fleet_of(world).step + 2
    world.save_rate = 0.0
    world.finish()
    assert world.server is not None
    if world.server.state.closed is None:
        world.server.close("finished")
    with pytest.raises(Conflict, match="cannot be resumed, only rolled back"):
        world.server.resume()
    world.resume_run(back=True)
    world.submit("rollback", checkpoint=base)
    world.start_trainers()
    ticks(world, 4)
    assert (fleet_of(world).branch, starts(world)[-1].checkpoint) == ("branch-2", base)


def test_losses_of_another_branch_do_not_count_when_starting_again_makes_no_sense() -> None:
    world = quiet()
    base = saved(world)
    ticks(world, 20)
    for _ in range(SAME_FAILURES - 1):
        world.start_trainers()
        ticks(world, 2)
    roll(world, checkpoint=base)
    for _ in range(SAME_FAILURES - 1):
        world.start_trainers()
        ticks(world, 2)
    assert world.server is not None
    assert world.server.state.closed is None
    assert sum(isinstance(entry.record, GenerationLost) for entry in world.disk.entries) > SAME_FAILURES


def test_branch_that_a_pending_rollback_is_to_begin_is_none_yet() -> None:
    world = quiet()
    base = saved(world)
    world.submit("rollback", checkpoint=base, branch="x", not_before_step=900)
    with pytest.raises(NotFound, match="has no branch 'x'"):
        world.submit("rollback", branch="x")
    with pytest.raises(Conflict, match="has a branch 'x' already"):
        world.submit("rollback", checkpoint=base, branch="x")
