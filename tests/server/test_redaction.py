"""What ranks and driver tell becomes a record without the secrets that are known where it is told."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.actor.remote import RayHandle
from control_plane.api.messages import Report
from control_plane.core.model.records import CheckpointFailed, CommandSettled, Death
from control_plane.core.model.redaction import Redaction
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs import launch
from ray_jobs.driver.failure_reporter import describe
from ray_jobs.process import context, error_text
from tests.server.rig import CREATED, Rig, command, start

IN_ENVIRONMENT, IN_CONFIG, SHAPED = "canary-of-the-environment", "canary-of-the-config", "hf_" + "Canary12" * 4
SAID = f"HTTPError: 401 for {IN_ENVIRONMENT}, {IN_CONFIG} and {SHAPED}"
CONFIG = f"workload: {{kind: script, args: [--api-key={IN_CONFIG}, --lr, 1e-4]}}\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """A run of a process in whose environment a secret lies."""
    monkeypatch.setenv("SOME_SERVICE_TOKEN", IN_ENVIRONMENT)
    files = RunFiles(tmp_path / "runs" / "demo")
    files.root.mkdir(parents=True)
    files.config.write_text(CONFIG)
    return files


def told_everything(handle: Any) -> None:
    """Everything with which ranks and driver tell what an exception or a script said."""

    async def tell() -> None:
        started = start()
        await handle.start_generation(type(started)(started.uuid, started.ranks, 0, 100, started.knobs, {"data": SAID}))
        await handle.submit(command(1))
        settled = CommandSettled(
            uuid=UUID(int=1), status="failed", step=5, generation=1, reason=SAID, after={"said": [SAID]}
        )
        failed = CheckpointFailed(checkpoint="step-5", step=5, generation=1, reason=SAID)
        await handle.report(Report(generation=1, outcomes=(settled,), failed_checkpoints=(failed,)))
        await handle.fail_generation(1, (Death(rank=0, reason=SAID),), UUID(int=7))
        await handle.close("failed", SAID)

    asyncio.run(tell())


class Wire(RayHandle):
    """The handle across Ray, and what it hands to Ray."""

    def __init__(self, files: RunFiles) -> None:
        super().__init__(files)
        self.sent: list[Any] = []

    async def _call(self, method: str, *args: Any, wait_s: float = 0.0) -> Any:
        self.sent.append((method, args))


def test_what_leaves_the_driver_and_the_ranks_holds_no_secret(files: RunFiles) -> None:
    wire = Wire(files)
    told_everything(wire)
    assert len(wire.sent) == 5
    assert "anary" not in repr(wire.sent)
    assert repr(wire.sent).count("HTTPError: 401 for ***, *** and ***") == 6


def test_journal_and_answers_hold_no_secret_even_if_it_was_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    server = ControlServer(
        CREATED,
        Journal.open(rig.journal_dir),
        MetricsStore(tmp_path / "metrics.sqlite"),
        redaction=Redaction([IN_ENVIRONMENT, IN_CONFIG]),
    )
    told_everything(server)
    seen = asyncio.run(server.snapshot()).model_dump_json() + repr(asyncio.run(server.tail(0, 100, 0)))
    assert "anary" not in seen
    assert b"anary" not in rig.journal_bytes()
    assert rig.journal_bytes().count(b"HTTPError: 401 for ***") == 6


def test_a_server_that_knows_no_secret_still_hides_those_of_known_shape(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    told_everything(rig.serve(clocked=False))
    assert SHAPED.encode() not in rig.journal_bytes()
    assert IN_ENVIRONMENT.encode() in rig.journal_bytes()


def test_ranks_and_driver_tell_an_exception_without_what_they_know(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> Any:
        raise AssertionError

    context.enter(context.RunContext(files=files, connect=connect))
    try:
        assert error_text.error_text(ValueError(SAID)) == "ValueError: HTTPError: 401 for ***, *** and ***"
    finally:
        context.enter(None)
    redaction = Wire(files)._redaction()
    assert launch._first_cause(RuntimeError("x\n" + SAID), redaction) == "RuntimeError: " + redaction.text(SAID)
    # Cut off in the middle of a secret, nobody would know its beginning for one.
    long = RuntimeError("x" * (500 - len("canary")) + IN_ENVIRONMENT)
    assert "canary" not in describe(files, 0, long).reason
