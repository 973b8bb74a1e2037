"""The lines of docs/autopilot.md work on a real cluster whose gateway, a replica of Ray Serve, runs the agent.

With a key the model is a scripted chat server of these tests: it is no language model, and shows nothing about one.
"""

import re
import shutil
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
from tests.agent.chat_server import Chat, chat_server, completion
from tests.architecture.documents import bash_lines
from tests.ray.cluster import REPOSITORY, Cluster, running, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

AUTOPILOT = REPOSITORY / "docs" / "autopilot.md"
CONFIG = REPOSITORY / "configs" / "gpt2-local.yaml"
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.S)
KEY = "canary-key-of-the-model"
WITHIN_S = 240.0
NEWCOMER_S = 300.0
"""The document promises five minutes, on a machine whose cluster is up."""


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


def steer_on(cluster: Cluster) -> Callable[..., str]:
    """Return `steer` on this cluster: it fails the test where the command fails."""

    def steer(*words: str) -> str:
        done = CliRunner().invoke(app, words, env=cluster.environment)
        assert done.exit_code == 0, f"steer {words}\n{done.output}"
        return str(done.output)

    return steer


def test_lines_of_the_document_work_and_the_agent_is_a_process_of_the_gateway(
    cluster: Cluster, client: SteerwayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(REPOSITORY))
    steer = steer_on(cluster)
    lines = [tuple(words[1:]) for words in bash_lines(AUTOPILOT.read_text("utf-8")) if words[0] == "steer"]
    (start, stop), looks = (lines[0], lines[-1]), lines[1:-1]
    assert (start[:2], stop[:2]) == (("agent", "start"), ("agent", "stop"))
    steer("submit", "configs/gpt2-local.yaml", "training.max_steps=100000", "--detach")
    run = client.runs()[-1].run
    until(lambda: client.snapshot(run).step > 3)
    began_s = time.monotonic()
    steer(*start)
    until(lambda: client.agent(run).process.state == "running" and len(agents_of(run)) == 1)
    (first,) = agents_of(run)
    until(lambda: client.agent(run).last_decision is not None)
    for words in looks:
        steer(*words)
    assert time.monotonic() - began_s < NEWCOMER_S
    first.kill()
    until(lambda: [each.pid for each in agents_of(run)] not in ([], [first.pid]))
    assert "running" in steer("agent", "status", run)
    assert "step" in steer("logs", run, "--source", "agent")
    steer(*stop)
    until(lambda: not agents_of(run))
    step = client.snapshot(run).step
    until(lambda: client.snapshot(run).step > step)
    steer("stop", run, "--yes")


def halve(chat: Chat, request: object) -> None:
    """Answer as a model does, with the usage."""
    body = completion('{"action": "halve", "reason": "steady"}')
    chat.send(200, body[:-1] + b', "usage": {"prompt_tokens": 100, "completion_tokens": 10}}')


def test_with_a_key_given_to_steer_up_the_replicas_agent_asks_the_endpoint_and_its_proposal_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key and the endpoint are those of the environment of `steer up`; the agent is the document's section."""
    monkeypatch.chdir(Path(REPOSITORY))
    (section,) = YAML_BLOCK.findall(AUTOPILOT.read_text("utf-8"))
    config = tmp_path / "configs" / "train.yaml"
    shutil.copytree(CONFIG.parent, config.parent)
    config.write_text(f"{CONFIG.read_text('utf-8')}\n{section}", "utf-8")
    with chat_server(halve) as chat:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", chat.base_url)
        with running(tmp_path / "home") as cluster, cluster.client() as client:
            steer = steer_on(cluster)
            steer("submit", str(config), "training.max_steps=100000", "--detach")
            run = client.runs()[-1].run
            until(lambda: client.snapshot(run).step > 3)
            began_s = time.monotonic()
            until(lambda: len(agents_of(run)) == 1)
            (agent,) = agents_of(run)
            until(lambda: any(view.command for view in client.agent(run).agent.proposals))
            assert time.monotonic() - began_s < NEWCOMER_S
            made = next(view for view in client.agent(run).agent.proposals if view.command)
            assert (made.verdict, made.risk, made.what) == ("automatic", "low", "lr x 0.5")
            assert made.command is not None
            view = client.wait_settled(run, made.command, WITHIN_S)
            assert view.status == "applied"
            report = client.agent(run)
            assert report.model == "o4-mini"
            assert report.spent is not None
            assert report.spent.calls == len(chat.requests) >= 1
            assert chat.headers[0]["authorization"] == f"Bearer {KEY}"
            assert "asks o4-mini" in steer("agent", "status", run)
            assert f"{report.spent.calls} of 2,000 calls" in steer("agent", "status", run)
            shown = " ".join(agent.cmdline()) + steer("logs", run, "--source", "agent") + cluster.logs(run)
            shown += "".join(entry.model_dump_json() for entry in whole_journal(client, run))
            assert KEY not in shown
            steer("agent", "stop", run)
            until(lambda: not agents_of(run))
            steer("stop", run, "--yes")
