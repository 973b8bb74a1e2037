"""A closed run from its files: looks like the live one did, and takes nothing."""

import asyncio
from pathlib import Path

import pytest

from control_plane.api.messages import Point, Progress, Report, Snapshot, StepRange
from control_plane.api.ports import TrainerPort
from control_plane.core.model.errors import Conflict, Damaged, NotFound, RunEnded
from control_plane.server.archive import ArchivedRun
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.core import examples
from tests.gateway.rig import settle


async def train(files: RunFiles, close: bool = True) -> Snapshot:
    """A run with one applied and one expired command; what its server last said of it."""
    files.root.mkdir()
    journal, metrics = Journal.open(files.journal), MetricsStore(files.metrics)
    server = ControlServer(examples.created(files.run), journal, metrics)
    await server.start_generation(examples.start())
    await server.submit(examples.command(1, "pause"))
    await settle(server, examples.uuid(1), step=10)
    await server.submit(examples.command(2))
    points = (Point(step=10, name="loss", value=float("nan"), time_s=1.0), Point(step=11, name="lr", value=1, time_s=2))
    await server.report(Report(generation=1, points=points, progress=Progress(step=10, total_steps=100)))
    if close:
        await server.close("finished", "all steps are done")
    journal.close()
    metrics.close()
    return await server.snapshot()


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """Where the run will be."""
    return RunFiles(tmp_path / "run-1")


def test_archived_run_shows_what_the_live_one_last_showed(files: RunFiles) -> None:
    live = asyncio.run(train(files))
    archived = ArchivedRun(files)
    shown = asyncio.run(archived.snapshot())
    passing = {"progress_age_s": None, "steps_per_s": None}
    assert shown.model_dump_json() == live.model_copy(update=passing).model_dump_json()
    assert archived.closed
    assert shown.latest["lr"] == 1.0
    assert shown.reason == "all steps are done"


def test_archived_run_tells_its_branches_and_what_they_came_to(files: RunFiles) -> None:
    asyncio.run(train(files))
    archived = ArchivedRun(files)
    (main,) = asyncio.run(archived.trajectories()).branches
    assert [(done.what, done.step) for done in main.interventions] == [("pause", 10)]
    assert main.knobs == examples.KNOBS
    (rate,) = asyncio.run(archived.results((StepRange(),), ("lr",)))
    assert (rate.last.step, rate.last.value) == (11, 1.0)
    files.metrics.unlink()
    assert asyncio.run(archived.results((StepRange(),), ("lr",))) == ()


def test_archived_run_that_somebody_has_go_on_says_so(files: RunFiles) -> None:
    asyncio.run(train(files))
    archived = ArchivedRun(files)
    assert archived.closed
    assert not archived.has_gone_on()
    Journal.open(files.journal).close()  # as a control server does that begins a term
    assert archived.has_gone_on()
    assert not ArchivedRun(files).has_gone_on()


def test_archived_run_that_was_read_while_a_new_server_began_says_that_it_has_gone_on(files: RunFiles) -> None:
    asyncio.run(train(files))
    metrics = MetricsStore(files.metrics)
    server = ControlServer(examples.created(files.run), Journal.open(files.journal), metrics)
    archived = ArchivedRun(files)
    assert archived.closed, "the new term has begun, and the run has not gone on yet"
    asyncio.run(server.resume("ann", back=True))
    assert archived.has_gone_on()
    assert not ArchivedRun(files).closed


def test_archived_run_tells_its_journal_page_by_page(files: RunFiles) -> None:
    asyncio.run(train(files))
    archived = ArchivedRun(files)
    first, rest = asyncio.run(archived.tail(0, 3, 0)), asyncio.run(archived.tail(3, 1000, 0))
    assert [entry.seq for entry in (*first, *rest)] == list(range(1, asyncio.run(archived.snapshot()).seq + 1))
    assert asyncio.run(archived.tail(1000, 10, 0.01)) == ()


def test_archived_run_answers_measurements(files: RunFiles) -> None:
    asyncio.run(train(files))
    found = asyncio.run(ArchivedRun(files).measurements(0, 10, ("lr",)))
    assert [(point.step, point.value) for point in found.points] == [(11, 1.0)]


def test_archived_run_without_measurements_answers_none_and_makes_no_file(files: RunFiles) -> None:
    asyncio.run(train(files))
    for path in files.root.glob("metrics*"):
        path.unlink()
    archived = ArchivedRun(files)
    assert asyncio.run(archived.measurements(0, 10)).points == ()
    assert asyncio.run(archived.snapshot()).latest == {}
    assert not files.metrics.exists()


def test_archived_run_takes_no_command_but_answers_a_retry(files: RunFiles) -> None:
    asyncio.run(train(files))
    archived = ArchivedRun(files)
    with pytest.raises(RunEnded, match="finished"):
        asyncio.run(archived.submit(examples.command(3)))
    assert asyncio.run(archived.submit(examples.command(2))).status == "expired"
    with pytest.raises(Conflict):
        asyncio.run(archived.submit(examples.command(2, "resume")))
    with pytest.raises(RunEnded, match="takes commands again when it is resumed"):
        asyncio.run(archived.submit(examples.command(4, "adopt_checkpoint", run="fork-1")))
    with pytest.raises(Conflict, match="has a branch 'main' already"):
        asyncio.run(archived.submit(examples.command(4, "adopt_checkpoint", run="fork-1", branch="main")))


def test_archived_run_knows_its_commands_and_no_other(files: RunFiles) -> None:
    asyncio.run(train(files))
    archived = ArchivedRun(files)
    assert asyncio.run(archived.command(examples.uuid(1))).status == "applied"
    with pytest.raises(NotFound):
        asyncio.run(archived.command(examples.uuid(9)))


def test_archived_run_is_for_operators_and_offers_trainers_nothing(files: RunFiles) -> None:
    archived = ArchivedRun(files)
    calls = {name for name in vars(TrainerPort) if not name.startswith("_")} - {"snapshot"}
    assert len(calls) == 8
    assert not [name for name in calls if hasattr(archived, name)]


def test_run_whose_server_is_gone_says_so(files: RunFiles) -> None:
    asyncio.run(train(files, close=False))
    archived = ArchivedRun(files)
    shown = asyncio.run(archived.snapshot())
    assert (archived.closed, shown.phase) == (False, None)
    assert shown.reason is not None
    assert "resumed" in shown.reason
    with pytest.raises(RunEnded, match="resumed"):
        asyncio.run(archived.submit(examples.command(3)))


def test_archived_run_with_a_changed_journal_is_damaged(files: RunFiles) -> None:
    asyncio.run(train(files))
    segment = files.journal / "000001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"step":10', b'"step":11', 1))
    with pytest.raises(Damaged):
        asyncio.run(ArchivedRun(files).snapshot())


def test_journal_under_another_id_is_shown_under_that_id(files: RunFiles) -> None:
    asyncio.run(train(files))
    assert not ArchivedRun(files).renamed
    other = RunFiles(files.root.rename(files.root.with_name("other")))
    archived = ArchivedRun(other)
    assert archived.renamed
    assert asyncio.run(archived.snapshot()).run == "other"
    assert asyncio.run(archived.submit(examples.command(1, "pause"))).run == "other"
