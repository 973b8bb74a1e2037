"""Housekeeping: what the queue shows, who deletes which run, which ended runs go by themselves, and the loop."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from control_plane.api.launching import Submission
from control_plane.api.messages import RunSummary
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, NotAllowed, NotFound, Unavailable
from control_plane.core.model.intents import Pause, Stop
from control_plane.core.model.records import Parent
from control_plane.core.rules.capacity import Demand
from control_plane.core.rules.run_deletion import DAY_S
from control_plane.gateway.queueing import housekeeping as module
from control_plane.gateway.queueing.housekeeping import Housekeeping
from control_plane.runs.deletion import Deletions
from control_plane.runs.queue_files import QueueEntry, QueueFolder
from control_plane.runs.quotas import change_quota, keep_ended
from control_plane.storage.layout import RunFiles, find_run
from tests.gateway.queueing.surroundings import Surroundings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Directory:
    """Runs by their folders, with the status that a test sets."""

    home: Path
    status: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    async def list(self) -> list[RunSummary]:
        return [self._summary(run) for run in sorted(self.status) if (self.home / "runs" / run).exists()]

    def _summary(self, run: str) -> RunSummary:
        parent = Parent(kind="fork", run=self.parents[run], step=0) if run in self.parents else None
        body: dict[str, Any] = {"step": 0, "total_steps": 0, "created_at": "", "world_size": 0}
        return RunSummary(run=run, name=run, status=self.status[run], parent=parent, **body)

    async def handle(self, run: str) -> Any:
        raise NotImplementedError

    def files(self, run: str) -> RunFiles:
        return find_run(self.home / "runs", run)


@dataclass
class Rig:
    """Housekeeping of a home."""

    home: Path

    def __post_init__(self) -> None:
        self.directory = Directory(self.home)
        self.around = Surroundings(self.directory)
        self.now_s = 1e9
        self.keeping = Housekeeping(self.home, self.around, lambda: self.now_s)
        self.queue = QueueFolder(self.home)

    def run(self, name: str, status: str = "finished", owner: str | None = "ana", parent: str | None = None) -> None:
        files = RunFiles(self.home / "runs" / name)
        files.root.mkdir(parents=True)
        files.config.write_text("x")
        if owner is not None:
            record = Submission(uuid=uuid4(), owner=owner, role="operator", submitted_at="2027-01-01T00:00:00")
            files.submission.write_text(record.model_dump_json())
        self.directory.status[name] = status
        if parent is not None:
            self.directory.parents[name] = parent

    def queued(self, name: str, cpus: int = 1, owner: str = "ana", **more: Any) -> QueueEntry:
        self.run(name, "queued", owner)
        demand = Demand(count=cpus, most=cpus, per_rank={"CPU": 1.0})
        body = {"run": name, "request": uuid4(), "owner": owner, "since_s": self.now_s - 5, "demand": demand}
        return self.queue.write(QueueEntry.model_validate(body | more))

    async def gone(self, name: str) -> None:
        """Wait until a deleted run's files are removed."""
        for _ in range(200):
            if not Deletions(self.home).decided():
                break
            await asyncio.sleep(0.01)
        assert not (self.home / "runs" / name).exists()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def everything(run: str) -> bool:
    return True


async def test_the_queue_shows_places_needs_and_reasons(rig: Rig) -> None:
    rig.queued("one", 3)
    rig.queued("two", owner="ben", priority=1)
    rig.queued("three", owner="ana")
    rig.queued("active", owner="cy", state="handed_over", job="active")
    rig.around.jobs.add("active")
    change_quota(rig.home, "ana", {"runs": 0})
    queue = await rig.keeping.queue(everything)
    assert [(each.place, each.run, each.owner, each.needs, each.reason) for each in queue.waiting] == [
        (1, "two", "ben", "1 rank with 1 CPU", "starts now"),
        (2, "one", "ana", "3 ranks with 1 CPU each", "quota of ana: 0 of 0 runs"),
        (3, "three", "ana", "1 rank with 1 CPU", "quota of ana: 0 of 0 runs"),
    ]
    assert queue.started == 1
    assert queue.waiting[0].since == "2001-09-09T01:46:35.000Z"
    assert [each.run for each in (await rig.keeping.queue(lambda run: run == "three")).waiting] == ["three"]


async def test_a_queued_run_is_shown_takes_no_command_and_can_be_stopped(rig: Rig) -> None:
    rig.queued("one", reason="needs 3 CPUs, 2 free")
    handle = await rig.keeping.queued("one")
    assert handle is not None
    snapshot = await handle.snapshot()
    assert (snapshot.status, snapshot.owner, snapshot.reason) == ("queued", "ana", "waits: needs 3 CPUs, 2 free")
    assert await handle.tail(0, 10, 0.0) == ()
    with pytest.raises(Conflict, match="is in the queue"):
        await handle.submit(Command(uuid=uuid4(), author="ana", intent=Pause()))
    receipt = await handle.submit(Command(uuid=uuid4(), author="ana", intent=Stop()))
    assert receipt.run == "one"
    assert rig.around.closed == [("one", "stopped by ana while it was queued")]
    assert await rig.keeping.queued("one") is None
    with pytest.raises(Conflict, match="no longer in the queue"):
        await handle.submit(Command(uuid=uuid4(), author="ana", intent=Stop()))


async def test_the_loop_starts_what_may_start_and_keeps_reasons_current(rig: Rig) -> None:
    await rig.keeping.start_runs()
    assert rig.around.started == 0
    rig.queued("big", 3)
    await rig.keeping.start_runs()
    assert rig.around.started == 0
    entry = rig.queue.entry("big")
    assert entry is not None
    assert entry.reason == "needs 3 CPUs (3 ranks with 1 CPU each), 2 free"
    rig.queued("small")
    await rig.keeping.start_runs()
    assert rig.around.started == 1


async def test_the_loop_survives_errors_and_ends_when_it_is_cancelled(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(module, "AFTER_AN_ERROR_S", 0.001)
    rig.queued("one")
    errors = [Unavailable("Ray is away"), RuntimeError("a fault")]

    async def fail() -> None:
        if errors:
            raise errors.pop()

    rig.around.on_start = fail
    task = asyncio.create_task(rig.keeping.run_forever())
    while rig.around.started < 4:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("by", "role", "allowed"),
    [("ana", "operator", True), ("ben", "operator", False), ("ben", "admin", True), ("ana", "viewer", False)],
)
async def test_owners_and_admins_delete_ended_runs(rig: Rig, by: str, role: Any, allowed: bool) -> None:
    rig.run("one")
    if not allowed:
        with pytest.raises(NotAllowed):
            await rig.keeping.delete("one", by, role)
        assert (rig.home / "runs" / "one").exists()
        return
    deleted = await rig.keeping.delete("one", by, role)
    assert (deleted.run, deleted.owner) == ("one", "ana")
    await rig.gone("one")
    assert [(line["run"], line["by"]) for line in Deletions(rig.home).audit()] == [("one", by)]
    with pytest.raises(NotFound):
        await rig.keeping.delete("one", by, role)


async def test_runs_of_unknown_owners_are_for_admins(rig: Rig) -> None:
    rig.run("old", owner=None)
    with pytest.raises(NotAllowed, match="owner of run old is not known"):
        await rig.keeping.delete("old", "ana", "operator")
    await rig.keeping.delete("old", "root", "admin")


async def test_active_runs_and_parents_in_use_stay(rig: Rig) -> None:
    rig.run("active", "running")
    rig.run("ending", "finished")
    rig.around.jobs.add("ending-r2")
    rig.run("parent")
    rig.run("child", "running", parent="parent")
    for run in ("active", "ending", "parent"):
        with pytest.raises(Conflict):
            await rig.keeping.delete(run, "ana", "operator")
    rig.directory.status["child"] = "stopped"
    await rig.keeping.delete("parent", "ana", "operator")


async def test_a_queued_run_leaves_the_queue_when_it_is_deleted(rig: Rig) -> None:
    rig.queued("one")
    await rig.keeping.delete("one", "ana", "operator")
    assert rig.queue.entries() == []
    await rig.gone("one")


async def test_a_run_that_is_started_meanwhile_is_not_deleted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the checks and the decision, the queue hands it to Ray."""
    entry = rig.queued("one")
    summaries = rig.around.summaries

    async def and_start() -> Any:
        found = await summaries()
        rig.queue.write(entry.model_copy(update={"state": "handed_over", "job": "one"}))
        return found

    monkeypatch.setattr(rig.around, "summaries", and_start)
    with pytest.raises(Conflict, match="is being started"):
        await rig.keeping.delete("one", "ana", "operator")
    assert (rig.home / "runs" / "one").exists()


async def test_ended_runs_past_their_time_go_and_pinned_ones_stay(rig: Rig) -> None:
    for name in ("old", "pinned", "young", "ending"):
        rig.run(name)
        rig.around.ended_at_s[name] = rig.now_s - (1 if name == "young" else 8) * DAY_S
    rig.around.pinned.add("pinned")
    rig.around.jobs.add("ending")
    await rig.keeping.tidy()
    assert len(list((rig.home / "runs").iterdir())) == 4
    keep_ended(rig.home, 7.0)
    await rig.keeping.tidy()
    assert sorted(path.name for path in (rig.home / "runs").iterdir()) == ["ending", "pinned", "young"]
    [line] = Deletions(rig.home).audit()
    assert (line["by"], line["because"]) == ("retention", "ended more than 7 days ago")


async def test_usage_is_of_the_runs_in_scope_with_quotas(rig: Rig) -> None:
    rig.run("one")
    rig.run("two", owner="ben")
    change_quota(rig.home, "ben", {"bytes": 1000})
    usage = await rig.keeping.usage(everything)
    assert {owner.owner: owner.limit for owner in usage.owners} == {"ana": None, "ben": 1000}
    assert usage.total == sum(run.total for run in usage.runs) > 0
    assert [run.run for run in (await rig.keeping.usage(lambda run: run == "one")).runs] == ["one"]


async def test_reading_the_queue_of_an_idle_home_is_cheap(rig: Rig) -> None:
    begun = time.process_time()
    for _ in range(100):
        await rig.keeping.start_runs()
    assert time.process_time() - begun < 1.0
