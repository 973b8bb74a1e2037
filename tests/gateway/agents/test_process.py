"""An agent's process: its environment, its log, its lock, and its end with the gateway."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from control_plane.cli.commands.agent import only_autopilot
from control_plane.config import Settings, settings
from control_plane.core.model.errors import Conflict
from control_plane.core.model.redaction import Redaction
from control_plane.gateway.agents.process import (
    MAX_LOG_BYTES,
    AgentLog,
    Ended,
    command_of,
    environment_of,
    lock_of,
    read_key,
    run_agent_process,
)
from control_plane.gateway.agents.routes import last_decision
from control_plane.gateway.agents.tether import IS_HELD
from control_plane.storage.layout import RunFiles

TOKEN = "canary-token-of-the-agent"
KEY = "canary-key-of-the-model"
RUN = "run-1"

PARENT = """
import asyncio, sys
from pathlib import Path
from control_plane.config import settings
from control_plane.gateway.agents.process import run_agent_process
from control_plane.storage.layout import RunFiles
home = Path(sys.argv[1])
asyncio.run(run_agent_process(
    settings({}, home=home), RunFiles(home / "runs" / "run-1"), "t" * 20,
    command=[sys.executable, "-c", "import time; time.sleep(60)"],
    on_start=lambda pid: print(pid, flush=True),
))
"""


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return settings({}, home=tmp_path)


def files_of(where: Settings) -> RunFiles:
    return RunFiles(where.runs_dir / RUN)


def end_of(where: Settings, code: str) -> Ended:
    """Run this code as the agent."""
    environ = dict(os.environ) | {"OPENAI_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": "canary-of-somebody-else"}
    command = [sys.executable, "-c", code]
    return asyncio.run(run_agent_process(where, files_of(where), TOKEN, command=command, environ=environ))


def is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_secrets_reach_the_environment_of_the_agent_alone(where: Settings) -> None:
    code = "import os; print(sorted(os.environ)); print(os.environ['STEERWAY_TOKEN'], os.environ['OPENAI_API_KEY'])"
    ended = end_of(where, code)
    assert ended.code == 0
    log = files_of(where).agent_log.read_text()
    assert "STEERWAY_HOME" in log
    assert "AWS_SECRET_ACCESS_KEY" not in log
    assert TOKEN not in log
    assert KEY not in log
    assert "*** ***" in log
    assert files_of(where).agent_log.stat().st_mode & 0o077 == 0
    shown = " ".join(command_of(where, files_of(where)))
    assert shown.endswith(f"-P -m control_plane.agent --run {RUN} --ledger {files_of(where).agent_ledger}")


def test_the_last_line_and_the_decisions_are_kept(where: Settings) -> None:
    ended = end_of(where, "print('step 25: loss 2.1: halve\\x1b[2J'); print('no such model'); raise SystemExit(4)")
    assert (ended.code, ended.last_line, ended.decided) == (4, "no such model", True)
    assert last_decision(files_of(where)) == "step 25: loss 2.1: halve [2J"
    assert not end_of(where, "print('starting'); import os; os.kill(os.getpid(), 9)").decided
    assert Ended(-9, "x").reason == "signal 9: x"


def test_a_log_is_bounded_and_so_is_a_line(where: Settings) -> None:
    log = AgentLog(files_of(where).agent_log, Redaction())
    for _ in range(40):
        log.write([log.clean("x" * 100_000)] * 30)
    assert log.path.stat().st_size <= MAX_LOG_BYTES + 30 * 2100
    assert end_of(where, "import sys; sys.stdout.write('y' * 10**7)").code == 0
    assert len(log.path.read_text().splitlines()[-1]) < 2100


def test_a_second_agent_of_a_run_is_refused_by_the_lock(where: Settings) -> None:
    with only_autopilot(where.home, RUN):
        ended = end_of(where, "print('it ran')")
    assert ended.code == IS_HELD
    assert "it ran" not in files_of(where).agent_log.read_text()
    assert end_of(where, "print('it ran')").code == 0

    async def twin() -> None:
        command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
        task = asyncio.create_task(run_agent_process(where, files_of(where), TOKEN, command=command))
        while "ready" not in files_of(where).agent_log.read_text():
            await asyncio.sleep(0.05)
        with pytest.raises(Conflict, match="another autopilot"), only_autopilot(where.home, RUN):
            pass
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(twin())
    with only_autopilot(where.home, RUN):
        assert lock_of(where.home, RUN).is_file()


def test_an_agent_that_ignores_its_end_is_killed(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.gateway.agents.process.ENDS_WITHIN_S", 0.3)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )

    async def story() -> int:
        pids: list[int] = []
        task = asyncio.create_task(
            run_agent_process(where, files_of(where), TOKEN, command=[sys.executable, "-c", code], on_start=pids.append)
        )
        while not files_of(where).agent_log.exists():
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return pids[0]

    assert not is_alive(asyncio.run(story()))


def test_an_agent_ends_with_the_gateway_however_that_ends(tmp_path: Path) -> None:
    gateway = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        assert is_alive(pid)
    finally:
        gateway.send_signal(signal.SIGKILL)
        gateway.communicate()
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_models_key_comes_from_the_environment_or_a_private_file(where: Settings) -> None:
    assert read_key(where, {}) == (None, None)
    where.agent_key_file.write_text(f"{KEY}\n")
    where.agent_key_file.chmod(0o644)
    key, reason = read_key(where, {})
    assert key is None
    assert "others may read it" in (reason or "")
    where.agent_key_file.chmod(0o600)
    assert read_key(where, {}) == (KEY, None)
    assert environment_of(where, TOKEN, {})["OPENAI_API_KEY"] == KEY
    assert read_key(where, {"OPENAI_API_KEY": "another"}) == ("another", None)
    where.agent_key_file.unlink()
    where.agent_key_file.symlink_to("/etc/hostname")
    assert read_key(where, {})[0] is None
    local = settings({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "STEERWAY_AGENT_MODEL": "local"}, home=where.home)
    there = environment_of(local, TOKEN, {"PATH": "/bin", "RAY_AUTH_TOKEN": "canary"})
    assert (there["OPENAI_BASE_URL"], there["STEERWAY_AGENT_MODEL"]) == ("http://127.0.0.1:9/v1", "local")
    assert "RAY_AUTH_TOKEN" not in there
