"""What is shown as current: of the branch that is trained, as far as its trainers are, and of nobody who is dead."""

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import Point, Progress, Report, Snapshot
from control_plane.cli.output import formatting
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import CheckpointCommitted, CommandSettled, Death
from control_plane.server.control_server import ControlServer
from tests.server.rig import Rig, command, start
from tests.server.virtual_time import run

ABANDONED_LR = 0.000245


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def measured(step: int, **values: float) -> tuple[Point, ...]:
    return tuple(Point(step=step, name=name, value=value, time_s=step) for name, value in values.items())


async def trained(server: ControlServer, generation: int, *steps: int) -> None:
    for step in steps:
        told = measured(step, loss=10.0 - step, lr=ABANDONED_LR)
        progress = Progress(step=step, total_steps=100, steps_per_s=2.0)
        await server.report(Report(generation=generation, points=told, progress=progress))


async def rolled_back(rig: Rig) -> ControlServer:
    """Trained to step 9, and gone back to the checkpoint of step 4."""
    server = rig.serve()
    await server.start_generation(start(1))
    saved = CheckpointCommitted(checkpoint="step-4-g1", step=4, generation=1, path="checkpoints/step-4-g1")
    await server.report(Report(generation=1, checkpoints=(saved,)))
    await trained(server, 1, 3, 4, 9)
    back = command(7, Rollback(checkpoint="step-4-g1", branch="b"))
    await server.submit(back)
    after = {"checkpoint": "step-4-g1", "step": 4, "from_branch": "main"}
    settled = CommandSettled(uuid=back.uuid, status="applied", step=9, generation=1, after=after, world_size=1)
    await server.report(Report(generation=1, outcomes=(settled,)))
    return server


def shown(snapshot: Snapshot) -> tuple[int, object, str, str]:
    told = formatting.progress(snapshot)
    return snapshot.step, snapshot.latest.get("loss"), told["lr"], told["status"]


def test_nothing_of_the_branch_that_was_left_is_shown_as_current(rig: Rig) -> None:
    async def story() -> None:
        server = await rolled_back(rig)
        for living in (server, rig.serve()):
            assert shown(await living.snapshot()) == (4, None, "-", "switching")
        server = rig.serve()
        await server.end_generation(1, "left", 9, None)
        branched_seq = (await server.resume_point()).branched_seq
        of_branch = replace(start(2, step=4), branch="b", branched_seq=branched_seq, checkpoint="step-4-g1")
        await server.start_generation(of_branch)
        for living in (server, rig.serve()):
            assert shown(await living.snapshot()) == (4, None, "0.001", "running")
        server = rig.serve()
        await server.report(Report(generation=2, points=measured(5, loss=6.5, lr=5e-4)))
        for living in (server, rig.serve()):
            assert shown(await living.snapshot())[1:3] == (6.5, "0.0005")

    run(story())


def test_values_beyond_what_was_restored_are_not_current(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start(1))
        await trained(server, 1, 3, 4, 9)
        await server.fail_generation(1, (Death(rank=0, reason="a fault"),))
        assert (await server.snapshot()).latest["loss"] == 1.0, "how far it was, until the next ones begin"
        await server.start_generation(start(2, step=4))
        assert (await server.snapshot()).latest["loss"] == 6.0

    run(story())


async def closed_and_resumed(rig: Rig) -> ControlServer:
    server = rig.serve()
    await server.start_generation(start(1))
    await trained(server, 1, 3)
    await server.fail_generation(1, (Death(rank=0, reason="a fault"),))
    await server.close("failed", "it has failed")
    assert (await server.snapshot()).ranks, "of a run that is over: where it was"
    server = rig.serve()
    await server.resume("ada")
    return server


def test_run_whose_training_has_ended_is_ending_until_it_is_over(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start(1))
        await trained(server, 1, 3)
        await server.end_generation(1, "finished", 3, None)
        assert formatting.progress(await server.snapshot())["status"] == "ending"
        await server.close("finished", None)
        assert formatting.progress(await server.snapshot())["status"] == "finished"

    run(story())


def test_run_that_was_resumed_is_starting_and_has_no_ranks_until_its_trainers_begin(rig: Rig) -> None:
    async def story() -> None:
        server = await closed_and_resumed(rig)
        snapshot = await server.snapshot()
        assert (snapshot.ranks, snapshot.phase, snapshot.reason, snapshot.steps_per_s) == ((), None, None, None)
        assert (snapshot.status, formatting.progress(snapshot)["status"]) == ("waiting", "starting")
        assert formatting.progress(snapshot)["ranks"] == "-"
        await server.start_generation(start(2, step=3))
        snapshot = await server.snapshot()
        assert (snapshot.status, [place.pid for place in snapshot.ranks]) == ("running", [1])

    run(story())


def test_trainers_that_are_lost_are_not_listed_and_their_nodes_are_known(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start(1))
        await trained(server, 1, 3)
        await server.resume_point()
        await server.fail_generation(1, (Death(rank=0, reason="a fault"),), UUID(int=7))
        snapshot = await server.snapshot()
        assert (snapshot.status, snapshot.ranks, snapshot.step, snapshot.steps_per_s) == ("recovering", (), 3, None)
        assert [death.node for death in snapshot.recoveries[0].deaths] == ["here"]

    run(story())


def test_branch_that_a_stopped_run_goes_to_begins_where_it_begins(rig: Rig) -> None:
    async def story() -> None:
        server = await closed_and_resumed(rig)
        saved = CheckpointCommitted(checkpoint="step-2-g1", step=2, generation=1, path="checkpoints/step-2-g1")
        server._commit([saved])
        back = Command(uuid=UUID(int=9), author="ada", intent=Rollback(checkpoint="step-2-g1"))
        await server.submit(back)
        assert shown(await server.snapshot()) == (2, None, "-", "switching")

    run(story())
