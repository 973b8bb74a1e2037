"""The `steer` lines of docs/autopilot.md work from top to bottom on a real cluster, whose gateway runs the agent."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from control_plane.client import SteerwayClient
from control_plane.core.model.errors import SteerwayError
from tests.architecture.documents import bash_lines
from tests.ray.cluster import REPOSITORY, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

AUTOPILOT = REPOSITORY / "docs" / "autopilot.md"
WITHIN_S = 240.0


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        with suppress(SteerwayError):
            if what():
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def agents_of(run: str) -> list[psutil.Process]:
    """The living processes of the run's agent."""
    agents = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            shown = process.cmdline()
            if "control_plane.agent" in shown and run in shown:
                agents.append(process)
    return agents


def test_lines_of_the_document_work_and_the_agent_is_a_process_of_the_gateway(
    cluster: Cluster, client: SteerwayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(REPOSITORY))

    def steer(*words: str) -> str:
        done = CliRunner().invoke(app, words, env=cluster.environment)
        assert done.exit_code == 0, f"steer {words}\n{done.output}"
        return str(done.output)

    lines = [tuple(words[1:]) for words in bash_lines(AUTOPILOT.read_text("utf-8")) if words[0] == "steer"]
    (start, stop), looks = (lines[0], lines[-1]), lines[1:-1]
    assert (start[:2], stop[:2]) == (("agent", "start"), ("agent", "stop"))
    steer("submit", "configs/gpt2-local.yaml", "training.max_steps=100000", "--detach")
    run = client.runs()[-1].run
    until(lambda: client.snapshot(run).step > 3)
    steer(*start)
    until(lambda: client.agent(run).process.state == "running" and len(agents_of(run)) == 1)
    (first,) = agents_of(run)
    until(lambda: client.agent(run).last_decision is not None)
    for words in looks:
        steer(*words)
    first.kill()
    until(lambda: [each.pid for each in agents_of(run)] not in ([], [first.pid]))
    assert "running" in steer("agent", "status", run)
    assert "step" in steer("logs", run, "--source", "agent")
    steer(*stop)
    until(lambda: not agents_of(run))
    step = client.snapshot(run).step
    until(lambda: client.snapshot(run).step > step)
    steer("stop", run, "--yes")
