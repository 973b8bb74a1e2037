"""A journal that fails, and a server that was replaced: nothing is confirmed, and nothing becomes visible."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import Report
from control_plane.core.model.errors import Fenced, NotFound, Unavailable
from control_plane.core.model.intents.server import DeleteCheckpoint
from control_plane.core.model.records import CheckpointCommitted
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import read
from tests.server.rig import Rig, applied, command, outcome, start
from tests.server.virtual_time import now_s, run
from tests.storage.disks import Crash, FailingDisk

Request = Callable[[ControlServer], Awaitable[object]]

REQUESTS: dict[str, Request] = {
    "submit": lambda server: server.submit(command(2)),
    "report": lambda server: server.report(outcome(applied(1))),
    "start_generation": lambda server: server.start_generation(start(2)),
    "end_generation": lambda server: server.end_generation(1, "finished", 9, None),
    "close": lambda server: server.close("failed", "the disk"),
}


def fill(failing: FailingDisk) -> None:
    failing.room_bytes = 60


def refuse_to_sync(failing: FailingDisk) -> None:
    failing.fsync_errno = errno.EIO


def mend(failing: FailingDisk) -> None:
    failing.room_bytes = failing.fsync_errno = None


async def begun(rig: Rig) -> ControlServer:
    server = rig.serve()
    await server.start_generation(start())
    await server.submit(command(1))
    return server


@pytest.mark.parametrize("fault", [fill, refuse_to_sync])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_request_on_a_failing_disk_is_unavailable_and_nothing_becomes_visible(
    tmp_path: Path, request_name: str, fault: Callable[[FailingDisk], None]
) -> None:
    async def story() -> None:
        failing = FailingDisk()
        server = await begun(Rig(tmp_path, failing.disk))
        shown, offered = await server.snapshot(), await server.offers(1, -1, 0)
        watching = asyncio.create_task(server.tail(shown.seq, 10, wait_s=20))
        await asyncio.sleep(0)
        fault(failing)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await REQUESTS[request_name](server)
        assert await server.snapshot() == shown
        assert await server.offers(1, -1, 0) == offered
        began_s = now_s()
        assert await watching == ()
        assert now_s() - began_s == pytest.approx(20), "nobody was woken"
        mend(failing)
        await REQUESTS[request_name](server)
        assert next(entry.seq for entry in await server.tail(shown.seq, 10, 0)) == shown.seq + 1

    run(story())


def test_retry_after_the_disk_has_room_again_is_accepted_once(tmp_path: Path) -> None:
    async def story() -> None:
        failing = FailingDisk()
        rig = Rig(tmp_path, failing.disk)
        server = await begun(rig)
        refuse_to_sync(failing)
        with pytest.raises(Unavailable, match="Input/output error"):
            await server.submit(command(2))
        with pytest.raises(NotFound):
            await server.command(UUID(int=2))
        mend(failing)
        receipt = await server.submit(command(2))
        assert list(await server.tail(0, 100, 0)) == read(rig.journal_dir)
        restarted = rig.serve()
        assert await restarted.submit(command(2)) == receipt

    run(story())


def test_retry_at_a_new_server_after_an_unanswered_submit_happens_once(tmp_path: Path) -> None:
    async def story() -> None:
        failing = FailingDisk()
        rig = Rig(tmp_path, failing.disk)
        server = await begun(rig)
        refuse_to_sync(failing)
        with pytest.raises(Unavailable):
            await server.submit(command(2))
        mend(failing)
        restarted = rig.serve()
        await restarted.submit(command(2))
        assert rig.record_types().count("CommandAccepted") == 2

    run(story())


def test_delete_torn_by_a_death_at_any_byte_has_not_happened_and_can_be_sent_again(tmp_path: Path) -> None:
    """Found by kills at `journal.append.mid_write`: half of it was there, and the ranks were offered a delete."""

    def saved(step: int) -> CheckpointCommitted:
        return CheckpointCommitted(checkpoint=f"c{step}", step=step, generation=1, path=f"checkpoints/c{step}")

    delete = command(7, DeleteCheckpoint(checkpoint="c1"))

    async def story(root: Path, room_bytes: int) -> bool:
        failing = FailingDisk(lambda descriptor: None)
        rig = Rig(root, failing.disk)
        server = await begun(rig)
        await server.report(Report(generation=1, checkpoints=(saved(1), saved(2))))
        failing.room_bytes, failing.crash = room_bytes, True
        try:
            await server.submit(delete)
        except Crash:
            pass
        else:
            return False
        mend(failing)
        restarted = rig.serve()
        assert (await restarted.offers(1, -1, 0)).commands == (command(1),), "nobody is offered a delete"
        with pytest.raises(NotFound):
            await restarted.command(delete.uuid)
        assert (await restarted.submit(delete)).status == "applied"
        return True

    sizes = range(0, 2000, 40)
    torn = [run(story(tmp_path / str(room_bytes), room_bytes)) for room_bytes in sizes]
    assert True in torn
    assert False in torn


@pytest.mark.parametrize("request_name", REQUESTS)
def test_request_to_a_replaced_server_is_fenced_and_nothing_becomes_visible(tmp_path: Path, request_name: str) -> None:
    async def story() -> None:
        rig = Rig(tmp_path)
        older = await begun(rig)
        shown = await older.snapshot()
        newer = rig.serve()
        for _ in range(2):
            with pytest.raises(Fenced):
                await REQUESTS[request_name](older)
        assert await older.snapshot() == shown
        await newer.submit(command(3))
        assert list(await newer.tail(0, 100, 0)) == read(rig.journal_dir)
        with pytest.raises(NotFound):
            await newer.command(UUID(int=2))

    run(story())
