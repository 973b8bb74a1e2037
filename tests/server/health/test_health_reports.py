"""Alerts in reports: recorded once and answered once, however often a report is repeated and wherever it is killed."""

import errno
from pathlib import Path

from control_plane.api.messages import Report
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.health import AlertCleared, AlertRaised, HealthChange
from control_plane.core.model.records import CheckpointCommitted, CommandAccepted
from control_plane.core.model.reflexes import REFLEXES
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import read
from tests.core.examples import alert, cleared, committed
from tests.server.rig import CREATED, Rig, start
from tests.server.virtual_time import run
from tests.storage.disks import Crash, FailingDisk

RESCUE = REFLEXES.validate_python(
    {"loss_spike": {"do": ["rollback trusted", "lr*=0.5", "skip_samples 8"], "save_first": True}, "dead_units": "pause"}
)
STEERED = CREATED.model_copy(update={"reflexes": RESCUE})
ALERTS = (alert(), alert("dead_units", subject="layer.0", level="critical"))
CHANGES = (HealthChange(raised=ALERTS), HealthChange(cleared=(cleared(ALERTS[0]),)))
REPORT = Report(generation=1, checkpoints=(committed(8, health="trusted"),), health=CHANGES)


async def begun(rig: Rig) -> ControlServer:
    server = rig.serve(STEERED)
    await server.start_generation(start())
    return server


def counts(rig: Rig) -> dict[str, int]:
    """How often each thing is in the journal, told apart by what must be there once."""
    seen: dict[str, int] = {}
    for entry in read(rig.journal_dir):
        match record := entry.record:
            case AlertRaised():
                key = f"raised {record.alert.kind}"
            case AlertCleared():
                key = f"cleared {record.cleared.kind}"
            case CommandAccepted():
                key = f"{record.command.author} {record.command.intent.kind}"
            case CheckpointCommitted():
                key = "checkpoint"
            case _:
                continue
        seen[key] = seen.get(key, 0) + 1
    return seen


ONCE = {
    "checkpoint": 1,
    "raised loss_spike": 1,
    "reflex:loss_spike save_checkpoint": 1,
    "reflex:loss_spike rollback": 1,
    "raised dead_units": 1,
    "cleared loss_spike": 1,
}


def test_repeated_report_is_recorded_and_answered_once(tmp_path: Path) -> None:
    async def story() -> None:
        rig = Rig(tmp_path)
        server = await begun(rig)
        for _ in range(3):
            await server.report(REPORT)
        assert counts(rig) == ONCE
        snapshot = await (rig.serve(STEERED)).snapshot()
        first, second = snapshot.alerts
        assert (first.stage, first.reflex, len(first.commands)) == ("cleared", "loss_spike", 2)
        assert (second.stage, second.declined) == ("open", "reflex:loss_spike is acting already")
        assert snapshot.reflexes == ("loss_spike", "dead_units")

    run(story())


def test_server_killed_at_any_byte_of_the_report_answers_its_repetition_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    async def killed_after(size: int) -> bool:
        """Whether it was killed; the report fitted otherwise."""
        failing = FailingDisk(fsync=lambda descriptor: None)
        rig = Rig(tmp_path / str(size), failing.disk)
        server = await begun(rig)
        failing.room_bytes, failing.crash = size, True
        died = False
        try:
            await server.report(REPORT)
        except Crash:
            died = True
        failing.room_bytes, failing.crash = None, False
        await rig.serve(STEERED).report(REPORT)
        assert counts(rig) == ONCE, size
        raised = [entry.record for entry in read(rig.journal_dir) if isinstance(entry.record, AlertRaised)]
        assert [bool(each.declined) for each in raised] == [False, True], "the same decisions as without a kill"
        return died

    sizes = range(0, 8000, 97)
    died = [run(killed_after(size)) for size in sizes]
    assert (died[0], died[-1]) == (True, False), "the sizes reach from the first byte to beyond the last"
    assert sum(died) > 20


def test_report_that_could_not_be_written_is_not_confirmed(tmp_path: Path) -> None:
    async def story() -> None:
        failing = FailingDisk(fsync=lambda descriptor: None)
        rig = Rig(tmp_path, failing.disk)
        server = await begun(rig)
        failing.fsync_errno = errno.EIO
        try:
            await server.report(REPORT)
        except Unavailable:
            pass
        else:
            raise AssertionError("rank 0 would have dropped its alerts")
        assert (await server.snapshot()).alerts == ()
        failing.fsync_errno = None
        await rig.serve(STEERED).report(REPORT)
        assert counts(rig) == ONCE

    run(story())


def test_alert_is_of_the_branch_and_training_of_the_generation_that_reports_it(tmp_path: Path) -> None:
    async def story() -> None:
        server = await begun(Rig(tmp_path))
        stray = alert(branch="elsewhere", training=7)
        await server.report(Report(generation=1, health=(HealthChange(raised=(stray,)),)))
        (view,) = (await server.snapshot()).alerts
        assert (view.alert.branch, view.alert.training, view.current) == ("main", 1, True)

    run(story())


def test_start_that_has_failed_before_there_is_a_generation_may_report(tmp_path: Path) -> None:
    async def story() -> None:
        server = Rig(tmp_path).serve(STEERED)
        await server.report(Report(generation=0))
        assert (await server.snapshot()).alerts == ()

    run(story())
