"""Two control servers at once: the older one was stopped in the middle of something, and goes on."""

import pytest

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Fenced
from tests.simulation.mutants.vocabulary_mutants import VOCABULARY_MUTANTS
from tests.simulation.test_recovery import quiet
from tests.simulation.test_world import ticks
from tests.simulation.world.faults import CRASH_POINTS
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import live_through
from tests.simulation.world.parts import Parts
from tests.simulation.world.world import World

TRIALS = 520
JUMPING = range(40)


def takeover(trial: int, parts: Parts = Parts()) -> World:
    """A server that is stopped at some point of a commit; its successor works, and then it goes on with more."""
    world = quiet(parts)
    world.faults.delay(trial % 3)
    ticks(world, trial % 5)
    before = len(world.disk.entries)
    world.faults.stop_server(at=CRASH_POINTS[trial % len(CRASH_POINTS)])
    if trial % 2:
        world.try_submit("set_learning_rate", factor=0.5)
    else:
        world.submit("evaluate")
    ticks(world, 2)
    assert len(world.disk.entries) > before
    return world


def stale_writes(world: World) -> int:
    """What the stopped server still tries; answers how many of its attempts were fenced."""
    server = world.stopped
    assert server is not None
    at, generation = len(world.disk.entries), server.state.generation_number
    fresh = Command.model_validate({"uuid": world.new_uuid(), "author": "ann", "intent": {"kind": "evaluate"}})
    attempts = (
        lambda: server.submit(fresh),
        lambda: server.fail_generation(99),
        lambda: server.end_generation(generation, "failed", 99),
        lambda: server.close("failed"),
    )
    for attempt in attempts:
        with pytest.raises(Fenced):
            attempt()
    assert len(world.disk.entries) == at
    return len(attempts)


def test_server_that_was_replaced_writes_nothing_whatever_it_was_stopped_in() -> None:
    fenced = 0
    for trial in range(TRIALS // 4):
        world = takeover(trial)
        fenced += stale_writes(world)
        world.finish()
    assert fenced >= 500


def test_random_histories_have_servers_that_were_replaced() -> None:
    """Guards the random histories: without a stale write that was fenced they would prove nothing about two servers."""
    assert sum(live_through(seed).fenced for seed in range(40)) > 20


def test_without_the_fence_two_servers_are_found_out() -> None:
    with pytest.raises(Violation):
        takeover_and_finish(VOCABULARY_MUTANTS["a server that was replaced still writes"])


def takeover_and_finish(parts: Parts) -> None:
    for trial in range(20):
        takeover(trial, parts).finish()


def test_history_under_a_wall_clock_that_jumps_by_an_hour_is_the_same_history() -> None:
    """Entries carry the time of the wall clock, and nothing else of a history depends on it."""
    times = set[bool]()
    for seed in JUMPING:
        jumping, steady = live_through(seed, actions=40), live_through(seed, actions=40, jumps=False)
        assert [entry.record for entry in jumping.disk.entries] == [entry.record for entry in steady.disk.entries]
        times.add([entry.time for entry in jumping.disk.entries] == [entry.time for entry in steady.disk.entries])
    assert times == {False}
