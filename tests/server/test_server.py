"""A command's life through the server; retries, refusals and restarts."""

import asyncio
import math
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import MAX_TAIL_ENTRIES, MAX_WAIT_S, Point, Progress, Report, Snapshot
from control_plane.core.model.commands import Pause, Resume, Stop
from control_plane.core.model.errors import Conflict, NotFound, Overloaded, Refused, RunEnded
from control_plane.core.model.records import CheckpointCommitted, CommandSettled
from control_plane.core.rules.admission import MAX_PENDING_COMMANDS, MAX_PENDING_OF_ONE
from control_plane.server.views import MAX_COMMANDS_IN_SNAPSHOT
from control_plane.storage.journal.writer import Disk
from tests.server.rig import CREATED, Rig, applied, command, outcome, start
from tests.server.virtual_time import now_s, run


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_submit_wakes_the_offers_and_the_outcome_wakes_the_tail(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        assert await server.start_generation(start()) == 1
        quiet = await server.offers(1, seen_revision=-1, wait_s=0)
        waiting = asyncio.create_task(server.offers(1, quiet.revision, wait_s=30))
        await asyncio.sleep(12)
        began_s = now_s()
        receipt = await server.submit(command(1))
        offer = await waiting
        assert (offer.commands, now_s()) == ((command(1),), began_s)
        watching = asyncio.create_task(server.tail(receipt.seq, 10, wait_s=30))
        await asyncio.sleep(1)
        await server.report(outcome(applied(1)))
        [entry] = await watching
        assert (entry.seq, entry.record) == (receipt.seq + 1, applied(1))
        assert (await server.offers(1, offer.revision, wait_s=30)).commands == ()
        view = await server.command(UUID(int=1))
        assert (view.status, view.settled, view.accepted_seq) == ("applied", applied(1), receipt.seq)
        assert (await server.snapshot()).knobs["lr"] == [1e-4]

    run(story())
    assert rig.record_types() == [
        "RunCreated",
        "TermStarted",
        "GenerationStarted",
        "CommandAccepted",
        "CommandSettled",
    ]


def test_a_wait_that_is_cancelled_as_something_else_changes_ends(rig: Rig) -> None:
    """With `asyncio.wait_for`, Python 3.11 loses such a cancellation, and ranks wait for their link at their end."""

    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        quiet = await server.offers(1, seen_revision=-1, wait_s=0)
        waiting = asyncio.create_task(server.offers(1, quiet.revision, wait_s=30))
        await asyncio.sleep(1)
        made = CheckpointCommitted(checkpoint="step-1-g1", step=1, generation=1, path="checkpoints/step-1-g1")
        await server.report(Report(generation=1, checkpoints=(made,), progress=Progress(step=1, total_steps=9)))
        waiting.cancel()
        began_s = now_s()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert now_s() == began_s

    run(story())


def test_submit_again_answers_the_same_receipt_and_writes_nothing(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        first = await server.submit(command(1))
        before = rig.journal_bytes()
        assert await server.submit(command(1)) == first
        assert rig.journal_bytes() == before
        restarted = rig.serve()
        assert await restarted.submit(command(1)) == first
        await restarted.start_generation(start())
        await restarted.report(outcome(applied(1)))
        assert await restarted.submit(command(1)) == first.model_copy(update={"status": "applied"})

    run(story())


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        (command(1, Pause()), Conflict),
        (command(2, Resume()), Conflict),
        (command(3).model_copy(update={"not_before_step": 101}), Refused),
    ],
)
def test_submit_refused_changes_nothing(rig: Rig, asked: object, refusal: type[Refused]) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        await server.submit(command(1))
        before, shown, offered = rig.journal_bytes(), await server.snapshot(), await server.offers(1, -1, 0)
        with pytest.raises(refusal):
            await server.submit(asked)
        assert rig.journal_bytes() == before
        assert await server.snapshot() == shown
        assert await server.offers(1, -1, 0) == offered

    run(story())


def test_submit_at_the_limit_of_pending_commands_is_overloaded_until_one_is_settled(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        for number in range(MAX_PENDING_OF_ONE):
            await server.submit(command(number))
        with pytest.raises(Overloaded, match=r"has 128 commands of .* that are not settled yet; the limit is 128, try"):
            await server.submit(command(1000))
        for number in range(MAX_PENDING_OF_ONE, MAX_PENDING_COMMANDS):
            await server.submit(command(number).model_copy(update={"author": "somebody else"}))
        with pytest.raises(Overloaded, match=r"has 256 commands that are not settled yet; the limit is 256, try again"):
            await server.submit(command(1000).model_copy(update={"author": "a third"}))
        await server.report(outcome(applied(0)))
        assert (await server.submit(command(1000))).status == "accepted"
        assert len((await server.snapshot()).commands) == MAX_COMMANDS_IN_SNAPSHOT

    run(story())


def test_restart_over_the_same_folder_is_the_same_server_in_the_next_term(rig: Rig) -> None:
    async def story() -> None:
        first = rig.serve()
        await first.start_generation(start())
        await first.submit(command(1))
        await first.submit(command(2, Pause()))
        await first.report(outcome(applied(1)))
        before, offered, history = await first.snapshot(), await first.offers(1, -1, 0), await first.tail(0, 1000, 0)
        second = rig.serve()
        assert (first.term, second.term) == (1, 2)
        after = await second.snapshot()
        kept = {"seq", "term", "progress_age_s", "phase", "steps_per_s"}
        assert after.model_dump(exclude=kept) == before.model_dump(exclude=kept)
        assert after.seq == before.seq + 1
        assert await second.offers(1, -1, 0) == offered
        assert (await second.tail(0, 1000, 0))[:-1] == history

    run(story())


def test_restart_with_a_reading_json_cannot_hold_shows_the_same_reading(rig: Rig) -> None:
    async def story() -> None:
        first = rig.serve()
        await first.start_generation(start())
        await first.submit(command(1))
        evaluated = CommandSettled(uuid=UUID(int=1), status="applied", step=5, after={"loss": math.nan})
        await first.report(outcome(evaluated))
        assert await rig.serve().command(UUID(int=1)) == await first.command(UUID(int=1))

    run(story())


@pytest.mark.parametrize("other", [{"run": "other"}, {"config_sha256": "d" * 64}])
def test_restart_as_another_run_is_a_conflict(rig: Rig, other: dict[str, str]) -> None:
    async def story() -> None:
        rig.serve()
        with pytest.raises(Conflict):
            rig.serve(CREATED.model_copy(update=other))

    run(story())


def test_generation_announced_twice_begins_once_and_keeps_its_progress(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        assert await server.start_generation(start(1)) == 1
        await server.report(Report(generation=1, progress=Progress(step=7, total_steps=100)))
        assert await server.start_generation(start(1)) == 1
        assert (await server.snapshot()).step == 7
        assert await server.start_generation(start(2, step=4)) == 2

    run(story())
    assert rig.record_types().count("GenerationStarted") == 2


def test_generation_that_is_over_is_not_listened_to(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start(1))
        await server.submit(command(1))
        revision = (await server.offers(1, -1, 0)).revision
        waiting = asyncio.create_task(server.offers(1, revision, wait_s=30))
        await asyncio.sleep(1)
        began_s = now_s()
        await server.start_generation(start(2))
        with pytest.raises(Conflict):
            await waiting
        assert now_s() == began_s, "trainers that were replaced hear it at once"
        for call in (
            server.offers(1, -1, 0),
            server.report(outcome(applied(1))),
            server.end_generation(1, "failed", 3, None),
        ):
            with pytest.raises(Conflict, match="generation 1 is not the current one"):
                await call
        assert (await server.command(UUID(int=1))).status == "accepted"
        assert [c.uuid for c in (await server.offers(2, -1, 0)).commands] == [UUID(int=1)]

    run(story())


def test_report_told_twice_is_recorded_once(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        await server.submit(command(1))
        checkpoint = CheckpointCommitted(checkpoint="step-5", step=5, generation=1, path="checkpoints/step-5")
        report = Report(generation=1, outcomes=(applied(1),), checkpoints=(checkpoint,))
        await server.report(report)
        before = rig.journal_bytes()
        await server.report(report)
        assert rig.journal_bytes() == before
        assert (await server.snapshot()).checkpoints == (checkpoint,)

    run(story())


def test_report_of_many_outcomes_is_one_write_in_their_order(tmp_path: Path) -> None:
    waits = list[int]()
    rig = Rig(tmp_path, Disk(fsync=waits.append))

    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        for number in range(1, 4):
            await server.submit(command(number))
        before = len(waits)
        await server.report(outcome(applied(2), applied(1), applied(3), applied(1)))
        assert len(waits) == before + 1
        settled = [each.record for each in await server.tail(0, 100, 0) if isinstance(each.record, CommandSettled)]
        assert settled == [applied(2), applied(1), applied(3)]

    run(story())


def test_report_with_one_bad_outcome_keeps_those_before_it(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        await server.submit(command(1))
        await server.submit(command(2))
        with pytest.raises(NotFound):
            await server.report(outcome(applied(1), applied(77), applied(2)))
        assert [(await server.command(UUID(int=number))).status for number in (1, 2)] == ["applied", "accepted"]

    run(story())


def test_report_of_another_outcome_or_an_unknown_command_is_refused(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        await server.submit(command(1))
        await server.report(outcome(applied(1, step=5)))
        before = rig.journal_bytes()
        with pytest.raises(Conflict):
            await server.report(outcome(applied(1, step=6)))
        with pytest.raises(NotFound):
            await server.report(outcome(applied(99)))
        assert rig.journal_bytes() == before

    run(story())


def test_report_of_measurements_is_not_journalled_and_survives_a_restart(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        before = rig.journal_bytes()
        points = (
            Point(step=1, name="loss", value=math.nan, time_s=1.0),
            Point(step=1, name="lr", value=1e-3, time_s=1.0),
        )
        progress = Progress(step=1, total_steps=100, steps_per_s=2.5)
        await server.report(Report(generation=1, points=points, progress=progress))
        assert rig.journal_bytes() == before
        await asyncio.sleep(3)
        shown = await server.snapshot()
        assert (shown.step, shown.steps_per_s, shown.progress_age_s) == (1, 2.5, 3.0)
        assert math.isnan(Snapshot.model_validate_json(shown.model_dump_json()).latest["loss"])
        restarted = rig.serve()
        assert (await restarted.measurements(1, 10)).points == points[1:]
        assert (await restarted.snapshot()).latest["lr"] == 1e-3

    run(story())


def test_close_expires_what_is_pending_and_takes_nothing_more(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        await server.submit(command(1))
        await server.submit(command(2))
        await server.report(outcome(applied(1)))
        await server.end_generation(1, "finished", 100, None)
        await server.end_generation(1, "finished", 100, None)
        await server.close("finished", None)
        await server.close("failed", "told too late")
        view = await server.command(UUID(int=2))
        assert (view.status, view.settled and view.settled.reason) == (
            "expired",
            "the run finished at step 100 before this command was applied",
        )
        shown = await server.snapshot()
        assert (shown.status, shown.phase, shown.closed) == ("finished", "ended", True)
        with pytest.raises(RunEnded):
            await server.submit(command(3))
        with pytest.raises(RunEnded):
            await server.start_generation(start(2))

    run(story())
    assert rig.record_types()[-3:] == ["GenerationEnded", "CommandSettled", "RunClosed"]


def test_submit_after_a_stop_is_refused_at_once(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.submit(command(1, Stop()))
        with pytest.raises(RunEnded, match="stopping"):
            await server.submit(command(2))

    run(story())


def test_command_that_is_unknown_is_not_found(rig: Rig) -> None:
    async def story() -> None:
        with pytest.raises(NotFound):
            await rig.serve().command(UUID(int=1))

    run(story())


@pytest.mark.parametrize(
    ("wait_s", "waited_s"), [(0, 0), (-5, 0), (7.5, 7.5), (1e9, MAX_WAIT_S), (math.nan, MAX_WAIT_S)]
)
def test_long_polls_wait_as_long_as_asked_and_never_longer_than_the_limit(
    rig: Rig, wait_s: float, waited_s: float
) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        seen = await server.offers(1, -1, 0)
        began_s = now_s()
        assert await server.tail(100, 10, wait_s) == ()
        assert now_s() - began_s == pytest.approx(waited_s)
        began_s = now_s()
        assert await server.offers(1, seen.revision, wait_s) == seen
        assert now_s() - began_s == pytest.approx(waited_s)

    run(story())


@pytest.mark.parametrize(
    ("after_seq", "limit", "seqs"),
    [(0, 2, [1, 2]), (-9, 2, [1, 2]), (1, 9, [2, 3]), (0, -1, []), (0, 0, []), (9, 9, [])],
)
def test_tail_with_any_bounds_answers_what_there_is(rig: Rig, after_seq: int, limit: int, seqs: list[int]) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.submit(command(1))
        assert [entry.seq for entry in await server.tail(after_seq, limit, 0)] == seqs

    run(story())


def test_tail_page_by_page_is_the_whole_journal(rig: Rig) -> None:
    async def story() -> None:
        server = rig.serve()
        await server.start_generation(start())
        for number in range(MAX_TAIL_ENTRIES // 2 + 10):
            await server.submit(command(number))
            await server.report(outcome(applied(number)))
        first = await server.tail(0, 10**9, 0)
        assert len(first) == MAX_TAIL_ENTRIES
        rest = await server.tail(first[-1].seq, 10**9, 0)
        assert [entry.seq for entry in first + rest] == list(range(1, (await server.snapshot()).seq + 1))

    run(story())
