"""Stories of single faults, and many random histories of all of them together."""

from dataclasses import replace
from typing import get_args
from uuid import UUID

import pytest

from control_plane.core.model.errors import Conflict
from control_plane.core.model.records import Status
from tests.simulation.world.faults import CRASH_POINTS, CrashPoint, Faults
from tests.simulation.world.fleet import Fleet, Violation
from tests.simulation.world.histories import live_through
from tests.simulation.world.world import World


def training(faults: Faults | None = None, ranks: int = 3) -> World:
    """A world whose trainers have their number and have taken a step."""
    world = World(ranks=ranks, faults=faults)
    world.start_trainers()
    ticks(world, 3)
    return world


def ticks(world: World, count: int) -> None:
    for _ in range(count):
        world.tick()


def fleet_of(world: World) -> Fleet:
    assert world.fleet is not None
    return world.fleet


def statuses(world: World) -> list[str]:
    """How the commands were settled, in the order of the journal."""
    return [outcome.status for outcome in world.books.settled.values()]


def reasons(world: World) -> list[str | None]:
    return [outcome.reason for outcome in world.books.settled.values()]


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_random_histories_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        live_through(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(1000, 11000, 500))
def test_very_many_random_histories_break_no_invariant(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 500):
        live_through(seed, actions=120, ranks=2 + seed % 3)


def test_history_in_which_two_ranks_misread_at_once_is_settled_honestly() -> None:
    """Seed 1584: both of two ranks misread the same command."""
    live_through(1584, actions=120, ranks=2)


def test_history_in_which_a_cancel_comes_too_late_for_a_stop_that_is_over_is_settled_honestly() -> None:
    """Seed 2291: the run is resumed after the stop, and its new trainers do not know of it."""
    live_through(2291, actions=120, ranks=4)


def test_random_histories_reach_every_kind_of_end() -> None:
    """Guards the test above: histories in which nothing happens would prove nothing."""
    worlds = [live_through(seed) for seed in range(40)]
    assert {status for world in worlds for status in statuses(world)} == set(get_args(Status))
    assert sum(len(world.books.starts) for world in worlds) > 2 * len(worlds)
    assert sum(world.server.state.term for world in worlds if world.server) > 2 * len(worlds)


def test_same_seed_lives_the_same_history() -> None:
    one, other = live_through(5), live_through(5)
    assert [entry.line() for entry in one.disk.entries] == [entry.line() for entry in other.disk.entries]


def test_command_in_a_sound_world_is_applied_on_all_ranks() -> None:
    world = training()
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 4)
    assert statuses(world) == ["applied"]
    assert [rank.rates for rank in fleet_of(world).ranks] == [[1e-4, 1e-4]] * 3


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_server_that_crashes_while_accepting_loses_no_promise_and_takes_the_retry(point: CrashPoint) -> None:
    world = training()
    world.faults.crash_server(at=point)
    command = world.submit("set_learning_rate", factor=0.5)
    assert world.server is None
    assert command.uuid in world.unanswered
    world.restart_server()
    world.send(command)
    ticks(world, 4)
    assert statuses(world) == ["applied"]
    assert len(world.books.accepted) == 1
    assert fleet_of(world).ranks[2].rates == [5e-4, 2.5e-4]


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_server_that_crashes_while_settling_settles_once(point: CrashPoint) -> None:
    world = training()
    world.submit("set_learning_rate", factor=0.5)
    world.faults.crash_server(at=point)
    ticks(world, 4)
    assert world.server is None
    world.restart_server()
    ticks(world, 4)
    assert statuses(world) == ["applied"]
    assert fleet_of(world).ranks[0].rates == [5e-4, 2.5e-4]


def test_training_goes_on_while_the_server_is_dead() -> None:
    world = training()
    world.crash_server()
    before = fleet_of(world).step
    ticks(world, 25)
    assert fleet_of(world).step == before + 25


def test_rank_that_refuses_leaves_every_rank_as_it_was() -> None:
    world = training(Faults().refuse(rank=1, reason="the engine owns it"))
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 4)
    assert (statuses(world), reasons(world)) == (["rejected"], ["rank 1: the engine owns it"])
    assert [rank.rates for rank in fleet_of(world).ranks] == [[1e-3, 5e-4]] * 3


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults().fail(rank=2, reason="it broke"), "rank 2: it broke; undone on all ranks"),
        (Faults().misread(rank=1), "rank 1 read {'lr': [0.00030000000000000003, 0.00030000000000000003]} back"),
        (Faults().misapply(rank=1), "rank 1 read {'lr': [0.00010000001, 0.00010000001]} back"),
    ],
    ids=["fails", "misreads", "misapplies"],
)
def test_rank_that_goes_wrong_makes_all_ranks_undo(faults: Faults, reason: str) -> None:
    world = training(faults)
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 4)
    assert statuses(world) == ["failed"]
    assert (reasons(world)[0] or "").startswith(reason)
    assert [rank.rates for rank in fleet_of(world).ranks] == [[1e-3, 5e-4]] * 3


def test_rank_that_cannot_undo_ends_the_generation_and_the_command_is_settled_by_the_next() -> None:
    world = training(Faults().fail(rank=1).stick(rank=1))
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 3)
    assert world.fleet is None
    assert statuses(world) == []
    world.faults.heal()
    world.start_trainers()
    ticks(world, 6)
    assert statuses(world) == ["applied"]


def test_rank_that_dies_in_the_boundary_takes_no_half_applied_command_along() -> None:
    world = training()
    world.submit("set_learning_rate", value=1e-4)
    world.faults.kill_rank(1, at_step=fleet_of(world).step + 2)
    ticks(world, 3)
    assert world.fleet is None
    world.start_trainers()
    ticks(world, 6)
    assert statuses(world) == ["applied"]
    assert [rank.effects for rank in fleet_of(world).ranks] == [list(world.books.settled)] * 3


def test_lost_reports_are_repeated_until_they_are_recorded() -> None:
    world = training()
    world.submit("evaluate")
    ticks(world, 1)
    world.faults.drop(1.0)
    ticks(world, 20)
    assert len(world.link.outbox if world.link else ()) == 1
    assert statuses(world) == []
    world.faults.heal()
    ticks(world, 3)
    assert statuses(world) == ["applied"]


def test_pause_holds_the_step_and_commands_are_still_taken() -> None:
    world = training()
    world.submit("pause")
    ticks(world, 4)
    held_at = fleet_of(world).step
    world.submit("set_learning_rate", value=1e-4)
    ticks(world, 10)
    assert fleet_of(world).step == held_at
    assert statuses(world) == ["applied", "applied"]
    world.submit("resume")
    ticks(world, 10)
    assert fleet_of(world).step > held_at


def test_paused_run_with_a_planned_stop_can_still_be_resumed() -> None:
    world = training()
    world.submit("pause")
    world.submit("stop", not_before_step=30)
    ticks(world, 5)
    assert fleet_of(world).held
    world.submit("resume")
    ticks(world, 40)
    assert fleet_of(world).stopping
    assert fleet_of(world).step == 30


def test_command_for_a_later_step_waits_for_it() -> None:
    world = training()
    step = fleet_of(world).step + 7
    world.submit("set_learning_rate", value=1e-4, not_before_step=step)
    ticks(world, 12)
    assert [outcome.step for outcome in world.books.settled.values()] == [step]


def test_uuid_that_is_used_for_another_command_is_refused() -> None:
    world = training()
    first = world.submit("evaluate")
    with pytest.raises(Conflict, match="is already the command"):
        world.send(first.model_copy(update={"reason": "another one"}))
    assert len(world.books.accepted) == 1


def test_report_of_a_dead_generation_is_not_recorded_over_the_living_one() -> None:
    world = training(Faults())
    world.submit("set_learning_rate", value=1e-4)
    world.faults.delay(0)
    ticks(world, 2)
    late = list(world.link.outbox.values()) if world.link else []
    assert [outcome.status for outcome in late] == ["applied"]
    server = world.server
    world.crash_server()
    world.kill_trainers()
    world.restart_server()
    world.start_trainers()
    ticks(world, 3)
    assert world.server is not None
    assert world.server is not server
    with pytest.raises(Conflict, match="generation 1 is not the current one"):
        world.server.report(1, late)
    world.check()


def test_late_first_announcement_of_dead_trainers_does_not_end_the_steering_of_the_living() -> None:
    world = World(ranks=2)
    world.start_trainers()
    world.faults.delay(1)
    world.tick()
    dead = world.link
    assert dead is not None
    world.faults.heal()
    world.start_trainers()
    ticks(world, 3)
    assert world.server is not None
    world.server.start_generation(replace(dead.start, uuid=UUID(int=10**6)))
    ticks(world, 3)
    assert world.fleet is None
    world.start_trainers()
    world.submit("evaluate")
    ticks(world, 6)
    assert statuses(world) == ["applied"]


def test_invariants_notice_a_journal_that_lost_a_record() -> None:
    world = training()
    world.submit("evaluate")
    world.disk.entries.pop()
    with pytest.raises(Violation, match="I2 durability"):
        world.check()


def test_invariants_notice_a_rank_that_changes_by_itself() -> None:
    world = training()
    fleet_of(world).ranks[1].rates[0] = 1.0
    with pytest.raises(Violation, match="I4 agreement: rank 1"):
        world.check()
