"""A control server that adopts: durable once, however often it is asked, and training goes on meanwhile."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Fenced, NotFound, Unavailable
from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.transfer import adopt
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.core import examples
from tests.server.rig import command
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import name_of

HERE = f"{name_of(9)}-of-fork"


class Slowly:
    """Adopts when it is let, and counts how often it was asked."""

    def __init__(self, files: RunFiles) -> None:
        self.files, self.begun, self.let, self.asked = files, threading.Event(), threading.Event(), 0

    def __call__(self, intent: AdoptCheckpoint, branch: str, known: frozenset[str]) -> Any:
        self.asked += 1
        self.begun.set()
        assert self.let.wait(20)
        return adopt(self.files, intent, branch, known)


@pytest.fixture
def slowly(tmp_path: Path) -> Slowly:
    parent = lay(tmp_path, "parent", 1)
    lay(tmp_path, "fork", 7, 9, parent="parent")
    return Slowly(parent)


def serve(slowly: Slowly) -> ControlServer:
    files = slowly.files
    created = examples.created("parent", "c" * 64)
    return ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics), adopt=slowly)


def asked(number: int = 1, **body: Any) -> Command:
    return command(number, AdoptCheckpoint(run="fork", **body))


def test_run_trains_and_takes_commands_while_a_checkpoint_is_brought(slowly: Slowly) -> None:
    async def story() -> None:
        server = serve(slowly)
        await server.start_generation(examples.start())
        adoption = asyncio.create_task(server.submit(asked()))
        assert await asyncio.to_thread(slowly.begun.wait, 20)
        assert (await server.submit(command(2))).status == "accepted"
        assert len((await server.offers(1, 0, 0)).commands) == 1
        assert not adoption.done()
        slowly.let.set()
        assert (await adoption).status == "applied"
        snapshot = await server.snapshot()
        assert [each.branch for each in snapshot.branches] == ["main", "branch-2"]
        assert (snapshot.branch, snapshot.branches[1].origin.run) == ("main", "fork")  # type: ignore[union-attr]
        await server.submit(command(3, Rollback(branch="branch-2")))

    asyncio.run(story())


def test_adoption_whose_sender_gave_up_is_ended_and_answers_the_next_try(slowly: Slowly) -> None:
    async def story() -> None:
        server = serve(slowly)
        first = asyncio.create_task(server.submit(asked()))
        assert await asyncio.to_thread(slowly.begun.wait, 20)
        first.cancel()
        again = [asyncio.create_task(server.submit(asked())) for _ in range(3)]
        await asyncio.sleep(0)
        slowly.let.set()
        receipts = await asyncio.gather(*again)
        assert {(each.seq, each.status) for each in receipts} == {(receipts[0].seq, "applied")}
        assert slowly.asked == 1

    asyncio.run(story())


def test_two_adoptions_of_one_checkpoint_are_one_branch_and_a_refusal(slowly: Slowly) -> None:
    async def story() -> None:
        slowly.let.set()
        server = serve(slowly)
        both = await asyncio.gather(server.submit(asked(1)), server.submit(asked(2)), return_exceptions=True)
        assert sorted(type(each).__name__ for each in both) == ["Conflict", "Receipt"]
        assert (slowly.files.checkpoints / HERE / "manifest.json").is_file()
        assert len((await server.trajectories()).branches) == 2

    asyncio.run(story())


def test_refused_adoption_leaves_the_journal_as_it_was(slowly: Slowly) -> None:
    async def story() -> None:
        slowly.let.set()
        server = serve(slowly)
        before = (await server.snapshot()).seq
        for body, kind in (({"checkpoint": "no"}, NotFound), ({"branch": "main"}, Conflict)):
            with pytest.raises(kind):
                await server.submit(asked(1, **body))
        assert (await server.snapshot()).seq == before

    asyncio.run(story())


def test_server_that_was_replaced_adopts_nothing_and_takes_nothing_away(slowly: Slowly) -> None:
    """Its successor has adopted the same meanwhile."""

    async def story() -> None:
        slowly.let.set()
        old = serve(slowly)
        new = serve(slowly)
        receipt = await new.submit(asked())
        with pytest.raises(Fenced):
            await old.submit(asked())
        assert (await new.submit(asked())).seq == receipt.seq
        assert adopt(slowly.files, AdoptCheckpoint(run="fork"), "branch-2", ()).checkpoint.checkpoint == HERE

    asyncio.run(story())


def test_server_without_files_says_so(slowly: Slowly) -> None:
    async def story() -> None:
        files = slowly.files
        server = ControlServer(
            examples.created("parent", "c" * 64), Journal.open(files.journal), MetricsStore(files.metrics)
        )
        with pytest.raises(Unavailable, match="no files"):
            await server.submit(asked())

    asyncio.run(story())
