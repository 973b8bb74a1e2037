"""What new trainers, the driver and a person who resumes a run hear from a control server."""

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import Progress, Report, Restart
from control_plane.core.model.commands import Pause, Stop
from control_plane.core.model.errors import Conflict, RunEnded
from control_plane.core.model.records import CheckpointCommitted, CheckpointFailed, CommandSettled, Death
from control_plane.core.rules.crash_loop import SAME_FAILURES
from control_plane.core.rules.recovery import replay_after
from control_plane.server.control_server import ControlServer
from tests.core.examples import digested
from tests.server.rig import Rig, applied, command, outcome, start
from tests.server.virtual_time import now_s, run

DEATHS = (Death(rank=0, node="here", reason="SIGKILL"),)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def checkpoint(step: int, generation: int = 1) -> CheckpointCommitted:
    name = f"step-{step}-g{generation}"
    return CheckpointCommitted(checkpoint=name, step=step, generation=generation, path=f"checkpoints/{name}")


async def steered(rig: Rig) -> ControlServer:
    """One command applied at step 5, and a checkpoint of step 3."""
    server = rig.serve()
    await server.start_generation(start(1))
    await server.submit(command(1))
    await server.report(Report(generation=1, outcomes=(applied(1),), checkpoints=(checkpoint(3),)))
    return server


def test_resume_point_after_a_restart_of_the_server_is_the_same(rig: Rig) -> None:
    async def story() -> None:
        point = await (await steered(rig)).resume_point()
        assert [each.checkpoint for each in point.candidates] == ["step-3-g1"]
        assert [(each.command, each.outcome) for each in point.decided] == [(command(1), applied(1))]
        assert (point.generation, point.reached_step) == (1, 5)
        assert await rig.serve().resume_point() == point

    run(story())


def test_report_records_outcomes_before_checkpoints(rig: Rig) -> None:
    """A checkpoint that may be restored contains no decision that the journal does not know."""

    async def story() -> None:
        await steered(rig)
        kinds = rig.record_types()
        assert kinds.index("CommandSettled") < kinds.index("CheckpointCommitted")

    run(story())


def test_resume_point_whose_loss_nobody_told_of_is_a_loss_and_the_late_word_completes_it(rig: Rig) -> None:
    """The driver's message may be lost, or come after the new trainers' question."""

    async def story() -> None:
        server = await steered(rig)
        await server.report(Report(generation=1, progress=Progress(step=8, total_steps=100)))
        await server.resume_point()
        await server.resume_point()
        snapshot = await server.snapshot()
        assert (snapshot.status, [(each.step, each.deaths) for each in snapshot.recoveries]) == (
            "recovering",
            [(8, ())],
        )
        with pytest.raises(Conflict, match="declared failed"):
            await server.report(Report(generation=1, progress=Progress(step=9, total_steps=100)))
        await server.fail_generation(1, DEATHS, UUID(int=7))
        for living in (server, rig.serve()):
            assert [(each.step, each.deaths) for each in (await living.snapshot()).recoveries] == [(8, DEATHS)]

    run(story())


def test_lose_generation_counts_what_rank_0_was_heard_of_and_is_recorded_once(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        await server.report(Report(generation=1, progress=Progress(step=8, total_steps=100)))
        await server.fail_generation(1, DEATHS)
        await server.fail_generation(1, DEATHS)
        snapshot = await server.snapshot()
        assert (snapshot.status, [each.step for each in snapshot.recoveries]) == ("recovering", [8])
        assert rig.record_types().count("GenerationLost") == 1

    run(story())


def test_generation_that_was_lost_is_refused_until_another_has_begun(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        await server.submit(command(2))
        await server.fail_generation(1, DEATHS)
        for request in (server.report(outcome(applied(2))), server.offers(1, -1, 5.0)):
            with pytest.raises(Conflict, match="declared failed"):
                await request
        assert (await server.command(UUID(int=2))).status == "accepted"
        assert await server.start_generation(start(2, step=3)) == 2
        await server.report(outcome(applied(2, generation=2, step=6), generation=2))

    run(story())


def test_offers_end_at_once_when_the_generation_is_lost(rig: Rig) -> None:
    """Trainers that are alive although they were given up hear of it, and end."""

    async def story() -> None:
        server = await steered(rig)
        begun_s, revision = now_s(), (await server.offers(1, -1, 0.0)).revision
        polling = asyncio.create_task(server.offers(1, revision, 10.0))
        await asyncio.sleep(1.0)
        await server.fail_generation(1, DEATHS)
        with pytest.raises(Conflict, match="declared failed"):
            await polling
        assert now_s() - begun_s < 2.0

    run(story())


def test_repetition_is_recorded_beside_the_settlement_once(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        await server.fail_generation(1, DEATHS)
        await server.start_generation(start(2, step=3))
        for _ in range(2):
            await server.report(outcome(applied(1, generation=2), generation=2))
        assert rig.record_types().count("CommandRepeated") == 1
        assert (await server.command(UUID(int=1))).settled == applied(1)

    run(story())


def test_recovery_is_measured_and_recorded_once(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        await server.report(Report(generation=1, progress=Progress(step=8, total_steps=100)))
        await server.fail_generation(1, DEATHS)
        await server.start_generation(start(2, step=3))
        restart = Restart(step=4, started_at_s=0.0, loaded_s=1.5, first_step_s=0.25)
        for _ in range(2):
            await server.report(Report(generation=2, restart=restart))
        assert rig.record_types().count("GenerationRecovered") == 1
        recovery = (await server.snapshot()).recoveries[0]
        assert (recovery.resumed_step, recovery.lost_steps) == (3, 5)
        assert recovery.phases_s == {"detect": 0.0, "re-form": 0.0, "load": 1.5, "first step": 0.25}

    run(story())


def test_trainers_that_make_no_step_are_refused_in_the_end_and_again_allowed_by_a_person(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        for number in range(1, SAME_FAILURES + 1):
            await server.resume_point()
            await server.start_generation(start(number))
            await server.fail_generation(number, DEATHS)
        with pytest.raises(RunEnded, match="failed 3 times in a row in the same way, at step 0, without a new step"):
            await server.resume_point()
        assert (await rig.serve().snapshot()).status == "failed"
        server = rig.serve()
        await server.resume("ada")
        await server.resume_point()

    run(story())


def test_run_that_was_stopped_while_paused_runs_when_it_is_resumed(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        for number, intent in ((2, Pause()), (3, Stop())):
            await server.submit(command(number, intent))
            settled = CommandSettled(uuid=UUID(int=number), status="applied", step=7, generation=1, world_size=1)
            await server.report(outcome(settled))
        await server.end_generation(1, "finished", 7, None)
        await server.close("finished", None)
        with pytest.raises(RunEnded, match="has stopped"):
            await server.resume_point()
        await server.resume("ada")
        point = await server.resume_point()
        replay = replay_after(point.decided, ())
        assert [each.command.uuid.int for each in replay.repeats] == [1]
        assert not replay.paused
        assert not replay.stopping
        await server.start_generation(start(2, step=3))
        assert (await server.snapshot()).status == "running"

    run(story())


def test_checkpoint_that_failed_is_recorded_and_one_that_is_told_again_is_not(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        failed = CheckpointFailed(checkpoint="step-9-g1", step=9, generation=1, reason="the disk is full")
        await server.report(Report(generation=1, checkpoints=(checkpoint(3),), failed_checkpoints=(failed,)))
        assert rig.record_types().count("CheckpointCommitted") == 1
        assert rig.record_types().count("CheckpointFailed") == 1

    run(story())


def test_digests_are_recorded_in_one_go_and_told_twice_once(rig: Rig) -> None:
    async def story() -> None:
        server = await steered(rig)
        told = tuple(digested(step) for step in (1, 2, 3))
        await server.report(Report(generation=1, digests=told[:2]))
        await server.report(Report(generation=1, digests=told))
        assert rig.record_types()[-3:] == ["StateDigested"] * 3
        assert rig.record_types().count("StateDigested") == 3
        with pytest.raises(Conflict, match="another digest of step 3"):
            await server.report(Report(generation=1, digests=(digested(4), digested(3, samples="other"))))
        assert rig.record_types().count("StateDigested") == 3

    run(story())


def test_retention_lets_no_abandoned_checkpoint_push_out_what_can_be_restored(rig: Rig) -> None:
    """The one of step 30 could not be read: the run went on from step 10, and lives by what it saves from there."""

    async def story() -> None:
        server = rig.serve()
        keep_one = {"keep_last": 1}
        await server.start_generation(start(1))
        await server.report(Report(generation=1, checkpoints=(checkpoint(10), checkpoint(30))))
        await server.fail_generation(1, DEATHS)
        await server.start_generation(replace(start(2, step=10), retention=keep_one))
        await server.report(Report(generation=2, checkpoints=(checkpoint(20, 2),)))
        names = [each.checkpoint for each in (await server.resume_point()).candidates]
        assert names == ["step-20-g2"]

    run(story())
