"""Losses: history repeats itself, whatever dies, and whenever. A world checks that after every tick."""

from typing import Any

import pytest

from control_plane.core.boundary import MAX_COMMANDS_PER_PROPOSAL
from control_plane.core.model.errors import Conflict, Refused
from control_plane.core.model.records import CommandRepeated, CommandSettled, GenerationStarted
from control_plane.core.rules.crash_loop import SAME_FAILURES
from control_plane.core.rules.recovery import ResumePoint, resume_point
from tests.simulation.mutants.recovery_mutants import BY_STORY, GIVING_UP, RECOVERY_MUTANTS
from tests.simulation.test_world import fleet_of, ticks, training
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import live_through, submit_many
from tests.simulation.world.parts import Parts
from tests.simulation.world.world import World

MAX_SEEDS_TO_CATCH = 300
SHOWN_BY = {
    "a lost generation is listened to": 136,
    "history is repeated in the order of acceptance": 39,
    "checkpoints are recorded before outcomes": 44,
}
"""Seeds that are tried first: those that show what few seeds show."""


def quiet(parts: Parts = Parts()) -> World:
    """Trainers that have taken a step, and save only when they are told to."""
    world = World(ranks=2, parts=parts)
    world.save_rate = world.eager_save_rate = 0.0
    world.start_trainers()
    ticks(world, 3)
    return world


def settle(world: World, kind: str = "set_learning_rate", **body: Any) -> int:
    """A command that is in the journal when this returns; answers the step where it took effect."""
    command = world.submit(kind, **body)
    for _ in range(6):
        world.tick()
        if command.uuid in world.books.settled:
            return world.books.settled[command.uuid].step or 0
    raise AssertionError("the command was not settled")


def saved(world: World) -> str:
    name = world.save()
    ticks(world, 2)
    return name


def starts(world: World) -> list[GenerationStarted]:
    return [entry.record for entry in world.disk.entries if isinstance(entry.record, GenerationStarted)]


def repetitions(world: World) -> list[tuple[int, int]]:
    """The seq of the settlement that is repeated, and the step."""
    settled = {entry.record.uuid: entry.seq for entry in world.disk.entries if isinstance(entry.record, CommandSettled)}
    again = [entry.record for entry in world.disk.entries if isinstance(entry.record, CommandRepeated)]
    return [(settled[each.uuid], each.step) for each in again]


@pytest.mark.parametrize("first_seed", range(0, 40, 20))
def test_random_losses_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        live_through(seed, ranks=2, deadly=True)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(1000, 9000, 500))
def test_very_many_random_losses_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 500):
        live_through(seed, actions=120, ranks=2 + seed % 3, deadly=True)


def test_random_losses_reach_every_way_to_come_back() -> None:
    """Guards the test above: histories in which nothing is repeated would prove nothing."""
    worlds = [live_through(seed, ranks=2, deadly=True) for seed in range(16)]
    begun = [start for world in worlds for start in starts(world)]
    assert sum(len(repetitions(world)) for world in worlds) > 30
    assert any(start.refused and start.checkpoint for start in begun)
    assert any(start.step and start.checkpoint for start in begun)
    assert any(world.server and world.server.state.resumed_seq for world in worlds)


@pytest.mark.parametrize("mutant", RECOVERY_MUTANTS)
def test_mutant_of_the_recovery_is_caught_by_an_invariant(mutant: str) -> None:
    with pytest.raises(Violation, match=r"^I\d+ "):
        live_through_seeds(RECOVERY_MUTANTS[mutant], SHOWN_BY.get(mutant, 0))


def live_through_seeds(parts: Parts, first: int) -> None:
    for seed in [first, *range(MAX_SEEDS_TO_CATCH)]:
        live_through(seed, actions=50, ranks=2, parts=parts, deadly=True)


def test_command_after_the_checkpoint_is_repeated_at_its_step_and_one_before_it_is_not() -> None:
    world = quiet()
    settle(world, factor=0.5)
    saved(world)
    step = settle(world, factor=0.5)
    world.start_trainers()
    ticks(world, 12)
    assert [at for _, at in repetitions(world)] == [step]
    assert fleet_of(world).ranks[1].rates == [1e-3 / 4, 5e-4 / 4]


def test_crashes_again_and_again_repeat_the_same_history() -> None:
    world = quiet()
    steps = [settle(world, factor=0.5)]
    saved(world)
    steps += [settle(world, factor=0.5), settle(world, value=1e-4, group=1)]
    for _ in range(3):
        world.start_trainers()
        ticks(world, 20)
    assert [at for _, at in repetitions(world)] == steps[1:] * 3
    assert fleet_of(world).ranks[0].rates == [1e-3 / 4, 1e-4]


def test_new_command_waits_until_history_has_repeated_itself() -> None:
    world = quiet()
    ticks(world, 8)
    last = settle(world, value=3e-4)
    world.start_trainers()
    ticks(world, 2)
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 20)
    assert [outcome.step or 0 for outcome in world.books.settled.values()][1] >= last
    assert fleet_of(world).ranks[0].rates == [1e-4, 1e-4]


def test_more_commands_than_a_proposal_takes_are_repeated_at_their_one_step() -> None:
    world = quiet()
    settle(world, "pause")
    submit_many(world)
    ticks(world, 8)
    at = fleet_of(world).step
    assert len(world.books.settled) == MAX_COMMANDS_PER_PROPOSAL + 3
    world.start_trainers()
    ticks(world, at + 6)
    assert repetitions(world) == [(seq, at) for seq, _ in repetitions(world)]
    assert len(repetitions(world)) == MAX_COMMANDS_PER_PROPOSAL + 3
    assert (fleet_of(world).held, fleet_of(world).step) == (True, at)


@pytest.mark.parametrize("is_contained", [True, False])
def test_pause_stays_a_pause_until_somebody_resumes(is_contained: bool) -> None:
    world = quiet()
    at = settle(world, "pause")
    if is_contained:
        saved(world)
    world.start_trainers()
    ticks(world, at + 5)
    assert (fleet_of(world).held, fleet_of(world).step) == (True, at)
    assert world.server is not None
    assert world.server.state.status == "paused"
    settle(world, "resume")
    ticks(world, 3)
    assert fleet_of(world).step > at


@pytest.mark.parametrize("save_before_the_stop", [True, False])
def test_stop_of_a_paused_run_leaves_neither_stop_nor_pause_when_it_is_resumed(save_before_the_stop: bool) -> None:
    world = quiet()
    settle(world, "pause")
    if save_before_the_stop:
        saved(world)
    settle(world, "stop")
    world.resume_run()
    world.start_trainers()
    ticks(world, 20)
    assert not fleet_of(world).held
    assert not fleet_of(world).stopping
    settle(world, factor=0.5)


def test_damaged_checkpoints_lead_to_the_one_before_and_then_to_the_beginning() -> None:
    world = quiet()
    settle(world, factor=0.5)
    first = saved(world)
    settle(world, factor=0.5)
    second = saved(world)
    world.damage_checkpoint(second)
    world.start_trainers()
    ticks(world, 12)
    world.damage_checkpoint(first)
    world.start_trainers()
    ticks(world, 20)
    assert [(start.checkpoint, [each.checkpoint for each in start.refused]) for start in starts(world)[1:]] == [
        (first, [second]),
        (None, [first]),
    ]
    assert len(repetitions(world)) == 3
    assert fleet_of(world).ranks[0].rates == [1e-3 / 4, 5e-4 / 4]


def abandoned(parts: Parts) -> World:
    """A newer checkpoint cannot be read; the run goes on from the older one, and is steered; then it can be read."""
    world = quiet(parts)
    saved(world)
    ticks(world, 15)
    newer = saved(world)
    world.damage_checkpoint(newer)
    world.start_trainers()
    ticks(world, 3)
    settle(world, factor=0.5)
    world.damage_checkpoint(newer)
    world.start_trainers()
    ticks(world, 30)
    return world


def test_checkpoint_of_an_abandoned_history_is_not_restored() -> None:
    assert [start.checkpoint for start in starts(abandoned(Parts()))] == [None, "0", "0"]
    with pytest.raises(Violation, match="I6 replay"):
        abandoned(BY_STORY["a checkpoint of an abandoned history is restored"])


def test_report_of_lost_trainers_is_refused_before_their_successors_have_begun() -> None:
    """They were told the history without it: nobody would repeat what it says."""
    world = training()
    asked = world.submit("set_learning_rate", factor=0.5)
    world.faults.delay(0)
    ticks(world, 2)
    assert world.link is not None
    late, number = list(world.link.outbox.values()), world.link.generation or 0
    assert [outcome.uuid for outcome in late] == [asked.uuid]
    world.faults.drop(1.0)
    world.start_trainers()
    assert world.server is not None
    with pytest.raises(Conflict, match="declared failed"):
        world.server.report(number, late)
    world.faults.heal()
    ticks(world, 6)
    assert fleet_of(world).ranks[0].effects == [asked.uuid]


def statuses(parts: Parts = Parts()) -> tuple[World, list[str]]:
    """What becomes of a run that is lost again and again at one step, after each start."""
    world, seen = World(ranks=2, parts=parts), list[str]()
    for _ in range(SAME_FAILURES + 1):
        world.start_trainers()
        ticks(world, 2)
        assert world.server is not None
        seen.append(world.server.state.status)
    return world, seen


@pytest.mark.parametrize("mutant", GIVING_UP)
def test_mutant_that_gives_up_too_soon_or_never_is_seen(mutant: str) -> None:
    assert statuses(GIVING_UP[mutant])[1] != statuses()[1]


def test_run_that_is_lost_without_a_new_step_is_given_up_and_may_be_resumed() -> None:
    world, seen = statuses()
    assert [status == "failed" for status in seen] == [False] * SAME_FAILURES + [True]
    with pytest.raises(Refused):
        world.submit("evaluate")
    world.resume_run()
    world.start_trainers()
    ticks(world, 4)
    assert settle(world, factor=0.5)


def test_history_crosses_to_the_trainers_as_text_unchanged() -> None:
    world = live_through(3, deadly=True)
    assert world.server is not None
    point = resume_point(world.server.state)
    assert point.decided
    assert ResumePoint.model_validate_json(point.model_dump_json()) == point
