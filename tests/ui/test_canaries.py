"""Secrets planted where a run has them are found nowhere that others look: in no journal, export, answer, log, page."""

import json
import logging
import shlex
import subprocess
import sys
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from control_plane.actor.control_actor import ControlActor
from control_plane.actor.remote import RayHandle
from control_plane.api.messages import Report
from control_plane.core.boundary import Failure
from control_plane.core.model.commands import Command, Evaluate
from control_plane.core.model.errors import Damaged
from control_plane.core.model.records import CheckpointFailed, CommandSettled
from control_plane.core.model.redaction import Redaction
from control_plane.programs import program
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.export import export
from control_plane.storage.layout import RunFiles
from ray_jobs import launch, submit, train
from ray_jobs.driver import clean_log, failure_reporter
from ray_jobs.process import context
from ray_jobs.rank.session import RankSession
from tests.server.rig import start
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import TOKEN, FakeCluster

RUN = "demo"
ENVIRONMENT = {
    "HF_TOKEN": "hf_canaryOfTheHub0123456789",
    "OPENAI_API_KEY": "sk-canary-of-the-model-0123456789",
    "SOME_SERVICE_SECRET": "canary of a service, with blanks",
    "DATABASE_URL": "postgres://user:canary-of-the-database@db/x",
}
CONFIG = """\
name: demo
workload: {kind: script, path: x.py, args: [--api-key=canary-of-an-argument, --hf-token, canary-of-another, --lr, 1e-4]}
training: {hub_token: canary-of-the-config, max_new_tokens: 128}
storage: {auth: {user: canary-of-a-user, pin: 4711canary}}
"""
OF_THE_CONFIG = (
    "canary-of-an-argument",
    "canary-of-another",
    "canary-of-the-config",
    "canary-of-a-user",
    "4711canary",
)
OF_NOBODY = (
    "Bearer canary.of.a.header",
    "https://me:canary-of-a-url@host/x?token=canary-of-a-query",
    "AKIACANARY0123456789",
)
SAID = "; ".join((*ENVIRONMENT.values(), *OF_THE_CONFIG, *OF_NOBODY))
CANARY = "canary"


class Complains:
    """A script's action, knob or applier that says everything that it knows."""

    def check(self, command: Command) -> str | None:
        raise RuntimeError(SAID)

    def apply(self, command: Command, step: int) -> Any:
        raise RuntimeError(SAID)

    def undo(self, command: Command) -> None:
        raise RuntimeError(SAID)


class Direct(RayHandle):
    """The handle across Ray, without Ray in between."""

    def __init__(self, files: RunFiles, server: ControlServer) -> None:
        super().__init__(files)
        self._server = server

    async def _call(self, method: str, *args: Any, wait_s: float = 0.0) -> Any:
        return await getattr(self._server, method)(*args)


async def live_through_it(files: RunFiles, server: ControlServer) -> None:
    """All that ranks, driver and Ray Train's controller tell, each with everything that they know."""
    handle = Direct(files, server)
    await handle.start_generation(start())
    session = RankSession(collectives=cast(Any, None), link=None, appliers={"evaluate": Complains()})
    asked = Command(uuid=UUID(int=1), author="ada", intent=Evaluate())
    for number, said in enumerate((session.check(asked), session._apply(asked, 5), session._undo(asked)), 1):
        command = asked.model_copy(update={"uuid": UUID(int=number)})
        await handle.submit(command)
        reason = said.reason if isinstance(said, Failure) else said
        settled = CommandSettled(
            uuid=command.uuid,
            status="failed",
            step=5,
            generation=1,
            reason=reason,
            after={"said": SAID, "token": "canary"},
        )
        await handle.report(Report(generation=1, outcomes=(settled,)))
    failed = CheckpointFailed(checkpoint="step-5", step=5, generation=1, reason=SAID)
    await handle.report(Report(generation=1, failed_checkpoints=(failed,)))
    dead = failure_reporter.describe(files, 1, RuntimeError(f"a traceback\n{SAID}"))
    await handle.fail_generation(1, (dead,), UUID(int=9))
    await handle.close("failed", launch._first_cause(RuntimeError(SAID), handle._redaction()))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFiles]:
    """A run's folder, in a process that has the secrets in its environment and works for that run."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    files = RunFiles(tmp_path / "runs" / RUN)
    files.logs.mkdir(parents=True)
    files.config.write_text(CONFIG)
    context.enter(context.RunContext(files=files, connect=lambda: cast(Any, None)))
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        train._log_to_file(files, 0)
        yield files
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    context.enter(None)


def drive(files: RunFiles, through: str | None = None) -> str:
    """A driver that dies of everything that it knows, with its log where a job writes it."""
    script = f"import sys; print({SAID!r}); print({SAID!r}, file=sys.stderr); raise RuntimeError({SAID!r})"
    request = uuid4()
    line = submit.command_line(files, request)
    inner = shlex.split(line)[-1]
    driver = shlex.join(program("ray_jobs.launch", str(files.root), "--request", str(request)))
    assert driver in inner
    inner = inner.replace(driver, shlex.join([sys.executable, "-c", script]))
    if through is not None:
        inner = inner.partition(" 2>&1 | ")[0] + f" 2>&1 | {through}"
    done = subprocess.run(["bash", "-c", inner], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, "the driver's own exit status"
    return done.stdout


def answers(cluster: FakeCluster) -> dict[str, str]:
    """What the gateway answers to whoever may look."""
    url = f"{cluster.environment['STEERWAY_URL']}/api/v1"
    of_the_run = ("", "/journal", "/logs?source=driver", "/logs?source=rank-0", "/tree", f"/commands/{UUID(int=1)}")
    paths = ["/runs", *(f"/runs/{RUN}{each}" for each in of_the_run), f"/compare?of={RUN}&of={RUN}"]
    with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client:
        return {path: client.get(url + path).text for path in paths}


def pages(visit: Visit) -> dict[str, str]:
    """What the console shows."""

    def all_of(app: AppTest) -> str:
        assert not app.exception
        return "\n".join(str(getattr(node, "proto", "")) for node in (*app.main, *app.sidebar))

    return {"the list of runs": all_of(visit()), "the run's page": all_of(visit(run=RUN))}


def places(
    files: RunFiles, cluster: FakeCluster, visit: Visit, monkeypatch: pytest.MonkeyPatch, through: str | None = None
) -> dict[str, str]:
    """Every place where somebody other than the run's owner looks, and what is there, after a run that told it all."""
    printed = drive(files, through)

    async def live() -> None:
        server = ControlActor(str(files.root))
        cluster.runs.servers[RUN] = server
        await live_through_it(files, server)

    cluster.do(live())
    monkeypatch.setattr(cluster.runs, "files", lambda run: files)
    logging.getLogger("somebody").error("a rank: %s", SAID)
    export(files, files.root.parent / "x.zip")
    with zipfile.ZipFile(files.root.parent / "x.zip") as archive:
        found = {f"export, {name}": archive.read(name).decode() for name in archive.namelist()}
    found |= {f"journal, {path.name}": path.read_text() for path in files.journal.iterdir()}
    found |= {f"log {path.name}": path.read_text() for path in files.logs.iterdir()}
    found |= answers(cluster) | pages(visit)
    return found | {"what the driver printed": printed, "ps": submit.command_line(files, uuid4())}


def leaks(found: dict[str, str]) -> list[str]:
    return sorted(where for where, text in found.items() if CANARY in text.lower())


def test_planted_secrets_are_found_nowhere(
    files: RunFiles, cluster: FakeCluster, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = places(files, cluster, visit, monkeypatch)
    assert leaks(found) == []
    assert found["journal, 000001.jsonl"].count("RuntimeError: ***") == 4, "what happened is still told"
    assert "RuntimeError: ***" in found["log driver.log"]
    assert "RuntimeError: ***" in found["log rank-0.log"]
    assert "Traceback" in found["log driver.log"]
    assert json.loads(found[f"/runs/{RUN}"])["status"] == "failed"
    assert "RuntimeError" in found["the run's page"]


def test_the_search_finds_them_where_nobody_takes_them_out(
    files: RunFiles, cluster: FakeCluster, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Redaction, "text", lambda self, text: text)
    monkeypatch.setattr("control_plane.storage.journal.export.conceals", lambda key, value: False)
    found = places(files, cluster, visit, monkeypatch, f"tee -a {shlex.quote(str(files.logs / clean_log.DRIVER_LOG))}")
    assert set(leaks(found)) >= {
        "journal, 000001.jsonl",
        "export, journal/000001.jsonl",
        "export, config.yaml",
        "log driver.log",
        "log rank-0.log",
        "what the driver printed",
        f"/runs/{RUN}",
        f"/runs/{RUN}/journal",
        f"/runs/{RUN}/logs?source=driver",
        f"/runs/{RUN}/logs?source=rank-0",
        "the run's page",
    }


@pytest.mark.parametrize("secret", [*ENVIRONMENT.values(), *OF_THE_CONFIG, *OF_NOBODY])
def test_log_is_written_as_it_comes_and_no_secret_in_two_pieces(files: RunFiles, secret: str) -> None:
    """A writer that flushes in the midst of a secret: the line waits for its end."""
    line = f"login as {secret} failed\n"
    half = len(line) // 2
    parts = (line[:half], line[half:])
    script = f"import time; [(print(part, end='', flush=True), time.sleep(0.2)) for part in {parts!r}]"
    log = shlex.join(program("ray_jobs.driver.clean_log", str(files.root)))
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([sys.executable, '-c', script])} | {log}"],
        capture_output=True,
        text=True,
        check=True,
    )
    written = (files.logs / clean_log.DRIVER_LOG).read_text()
    assert CANARY not in written.lower()
    assert written.startswith("login as ")
    assert written.endswith(" failed\n")
    assert done.stdout == written


def test_beginning_of_a_line_is_written_though_its_end_does_not_come(files: RunFiles) -> None:
    command = program("ray_jobs.driver.clean_log", str(files.root))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"step 1 of 9 ...")
        process.stdin.flush()
        assert process.stdout.read(15) == b"step 1 of 9 ..."
        process.terminate()  # it goes on until nobody writes any more
        process.stdin.write(b" done\nlast")
        process.stdin.close()
        assert process.stdout.read() == b" done\nlast"
    assert process.returncode == 0
    assert (files.logs / clean_log.DRIVER_LOG).read_text() == "step 1 of 9 ... done\nlast"


@pytest.mark.parametrize("error", [RuntimeError(SAID), Damaged(SAID)], ids=["the script's", "ours"])
def test_a_rank_hands_ray_no_exception_with_a_secret(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Ray tells it to processes that do not have this rank's environment."""

    def fail(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(train, "_is_closed", lambda _: False)
    monkeypatch.setattr(train, "_log_to_file", lambda *_: None)
    for part in ("_prepare_process", "_watch_for_preemption"):
        monkeypatch.setattr(train, part, lambda *_: None)
    monkeypatch.setattr(train, "_trained_to_the_end", fail)
    monkeypatch.setattr(train.RunConfig, "from_yaml", lambda *_: None)
    monkeypatch.setattr(train, "located", lambda config, _: config)
    monkeypatch.setattr(train, "variables", lambda *_: {})
    with pytest.raises(RuntimeError) as raised:
        train.main({"root": str(files.root), "use_gpu": False})
    told = "".join(traceback.format_exception(raised.value))
    assert "***; ***" in str(raised.value)
    assert "canary-of-the-config" not in told
    assert ENVIRONMENT["SOME_SERVICE_SECRET"] not in told


def test_an_exception_without_a_secret_is_raised_as_it_is(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = ValueError("there is no data today")

    def fail(*_: Any) -> bool:
        raise mistake

    monkeypatch.setattr(train, "_is_closed", lambda _: False)
    monkeypatch.setattr(train, "_log_to_file", lambda *_: None)
    for part in ("_prepare_process", "_watch_for_preemption"):
        monkeypatch.setattr(train, part, lambda *_: None)
    monkeypatch.setattr(train, "_trained_to_the_end", fail)
    monkeypatch.setattr(train.RunConfig, "from_yaml", lambda *_: None)
    monkeypatch.setattr(train, "located", lambda config, _: config)
    monkeypatch.setattr(train, "variables", lambda *_: {})
    with pytest.raises(ValueError, match="there is no data today") as raised:
        train.main({"root": str(files.root), "use_gpu": False})
    assert raised.value is mistake
