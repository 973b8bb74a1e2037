"""The wait before trainers that failed are started again: it ends in time, at a stop, and when the run is over."""

import asyncio
import logging
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.core.model.commands import Stop
from control_plane.core.model.records import Death
from control_plane.core.rules.crash_loop import KILLED
from control_plane.server.control_server import ControlServer
from ray_jobs.driver.back_off import StartCancelled, wait_for
from tests.server.rig import Rig, command, start
from tests.server.virtual_time import now_s, run


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def failing(rig: Rig, failures: int) -> ControlServer:
    """A run whose trainers have failed so often, each time for another reason."""
    server = rig.serve()
    for number in range(1, failures + 1):
        await server.start_generation(start(number))
        await server.fail_generation(number, (Death(rank=0, reason="a fault", signature=f"{KILLED} {number}"),))
    return server


def test_start_waits_for_as_long_as_it_has_to_and_says_so(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        server = await failing(rig, 5)
        restarting = (await server.snapshot()).restarting
        assert restarting is not None
        assert (restarting.failures, restarting.wait_s, restarting.alert) == (5, 8.0, True)
        begun_s = now_s()
        with caplog.at_level(logging.WARNING):
            await wait_for(server)
        assert now_s() - begun_s == pytest.approx(8.0)
        assert caplog.messages == [f"starting again in 8 s after 5 failures without a new step: {KILLED} 5"]

    run(story())


def test_wait_goes_on_where_it_was_when_the_control_server_is_another(rig: Rig) -> None:
    async def story() -> None:
        await failing(rig, 5)
        await asyncio.sleep(3.0)
        begun_s = now_s()
        await wait_for(rig.serve())
        assert now_s() - begun_s == pytest.approx(5.0, abs=0.01)

    run(story())


@pytest.mark.parametrize("failures", [1, 2])
def test_first_start_waits_for_nothing_and_the_second_for_a_second(rig: Rig, failures: int) -> None:
    async def story() -> None:
        server = await failing(rig, failures)
        begun_s = now_s()
        await wait_for(server)
        assert now_s() - begun_s == pytest.approx(failures - 1.0)

    run(story())


def test_stop_ends_a_run_that_waits_at_once(rig: Rig) -> None:
    async def story() -> None:
        server = await failing(rig, 9)
        begun_s = now_s()
        waiting = asyncio.create_task(wait_for(server))
        await asyncio.sleep(10.0)
        receipt = await server.submit(command(1, Stop()))
        assert receipt.status == "applied"
        with pytest.raises(StartCancelled, match="has stopped"):
            await waiting
        assert now_s() - begun_s <= 11.0
        assert (await server.snapshot()).status == "stopped"

    run(story())


def test_stop_that_was_sent_before_the_failure_is_not_waited_for_either(rig: Rig) -> None:
    async def story() -> None:
        server = await failing(rig, 3)
        await server.start_generation(start(4))
        await server.submit(command(1, Stop()))
        await server.fail_generation(4, (Death(rank=0, reason="a fault", signature=KILLED),))
        assert (await server.command(UUID(int=1))).status == "applied"
        assert (await server.snapshot()).status == "stopped"

    run(story())


def test_failed_run_tells_its_attempts_and_one_that_trains_tells_none(rig: Rig) -> None:
    async def story() -> None:
        server = await failing(rig, 3)
        assert [each.generation for each in (await server.snapshot()).attempts] == [1, 2, 3]
        await server.start_generation(start(4))
        assert (await server.snapshot()).attempts == ()
        for number in (4, 5, 6):
            await server.fail_generation(number, (Death(rank=0, reason="a fault", signature=KILLED),))
            if number < 6:
                await server.start_generation(start(number + 1))
        snapshot = await server.snapshot()
        assert (snapshot.status, snapshot.restarting, len(snapshot.attempts)) == ("failed", None, 6)
        assert "failed 3 times in a row in the same way, at step 0" in str(snapshot.reason)

    run(story())


def test_run_that_may_fail_for_so_long_only_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        rig = Rig(tmp_path, give_up_after_s=20.0)
        server = await failing(rig, 2)
        await asyncio.sleep(19.0)
        await server.start_generation(start(3))
        await server.fail_generation(3, (Death(rank=0, reason="a fault", signature="1"),))
        assert (await server.snapshot()).status == "recovering"
        await asyncio.sleep(2.0)
        server = rig.serve()
        await server.start_generation(start(4))
        await server.fail_generation(4, (Death(rank=0, reason="a fault", signature="2"),))
        assert "failed 4 times in 21 s (recovery.give_up_after_s: 20)" in str((await server.snapshot()).reason)

    run(story())
