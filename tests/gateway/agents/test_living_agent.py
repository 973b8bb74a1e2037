"""A real gateway process, a real agent process and a chat server: killed, restarted, stopped, with unbroken budgets."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from control_plane.api.agent_views import AgentReport
from control_plane.client import SteerwayClient
from control_plane.config import settings
from control_plane.core.model.errors import NotAllowed, SteerwayError
from control_plane.core.model.intents.agent import AgentSettings, StartAgent, StopAgent
from control_plane.core.model.intents.course import Stop
from control_plane.core.model.records import CommandAccepted
from control_plane.gateway.tokens import AGENT_OF, TokenBook
from tests.agent.chat_server import Chat, chat_server, completion
from tests.gateway.rig import RUN
from tests.ports import free_ports

WITHIN_S = 60.0
MAX_CALLS = 8


def until(what: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with suppress(SteerwayError):
            if what():
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@contextmanager
def gateway(home: Path, port: int, environ: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "tests.gateway.agents.gateway_process", str(home), str(port)]
    process = subprocess.Popen(command, env=environ)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def agents_of(home: Path) -> list[psutil.Process]:
    """Every living process of an agent of this home."""
    agents = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            shown = process.cmdline()
            if "control_plane.agent" in shown and any(str(home) in each for each in shown):
                agents.append(process)
    return agents


def halve(chat: Chat, request: object) -> None:
    """Answer as a model does, with the usage."""
    body = completion('{"action": "halve", "reason": "steady"}')
    chat.send(200, body[:-1] + b', "usage": {"prompt_tokens": 100, "completion_tokens": 10}}')


@pytest.mark.slow
def test_an_agent_survives_its_own_crash_and_the_gateways_with_budgets_unbroken(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    where = settings({}, home=tmp_path, gateway_port=port)
    with chat_server(halve) as chat:
        environ = dict(os.environ) | {
            "OPENAI_API_KEY": "canary-key-of-the-model",
            "OPENAI_BASE_URL": chat.base_url,
            "STEERWAY_AGENT_MAX_CALLS": str(MAX_CALLS),
        }

        def report() -> AgentReport:
            with SteerwayClient.from_settings(where) as client:
                return client.agent(RUN)

        def calls() -> int:
            spent = report().spent
            return spent.calls if spent is not None else 0

        def submit(intent: object) -> None:
            with SteerwayClient.from_settings(where) as client:
                client.submit(RUN, intent)  # type: ignore[arg-type]

        with gateway(tmp_path, port, environ) as first:
            until(lambda: report().status == "running")
            assert report().process.state == "none"
            wanted = AgentSettings(policy="model", mode="guarded", every_steps=20, adaptive=False, cool_down_steps=5)
            submit(StartAgent(settings=wanted))
            until(lambda: report().process.state == "running" and len(chat.requests) >= 1)
            until(lambda: report().last_decision is not None)
            seen = report()
            assert (seen.model, seen.budgets.max_calls) == ("o4-mini", MAX_CALLS)
            assert seen.spent is not None
            (agent,) = agents_of(tmp_path)
            shown = " ".join(agent.cmdline())
            assert "canary" not in shown
            assert agent.environ()["STEERWAY_TOKEN"] not in shown

            token = agent.environ()["STEERWAY_TOKEN"]
            agent.kill()
            until(lambda: [each.pid for each in agents_of(tmp_path)] not in ([], [agent.pid]))
            until(lambda: report().process.state == "running" and report().process.failures == 1)
            with pytest.raises(NotAllowed), SteerwayClient(where.gateway_url, token) as stale:
                stale.snapshot(RUN)

            (second,) = agents_of(tmp_path)
            first.send_signal(signal.SIGKILL)
            first.wait()
            until(lambda: not second.is_running(), 10)
            asked = len(chat.requests)

        with gateway(tmp_path, port, environ):
            until(lambda: report().process.state == "running")
            until(lambda: calls() >= MAX_CALLS)
            assert asked <= len(chat.requests) <= MAX_CALLS
            log = tmp_path / "runs" / RUN / "logs" / "agent.log"
            until(lambda: "the budget of 8 calls is used up" in log.read_text())
            time.sleep(1.5)
            assert len(chat.requests) <= MAX_CALLS, "no call is made beyond the budget, over all crashes"
            with SteerwayClient.from_settings(where) as client:
                entries = client.journal(RUN)
            made = [each.record.command for each in entries if isinstance(each.record, CommandAccepted)]
            by_agent = {each.intent.kind for each in made if each.author == f"{AGENT_OF}{RUN}"}
            assert "propose" in by_agent

            submit(StopAgent())
            until(lambda: report().process.state == "none" and not agents_of(tmp_path))
            assert not [
                each.id for each in TokenBook.from_file(where.tokens_file).tokens if each.id.startswith(AGENT_OF)
            ]
            submit(StartAgent(settings=AgentSettings(policy="rule")))
            until(lambda: report().process.state == "running" and agents_of(tmp_path))
            submit(Stop())
            until(lambda: not agents_of(tmp_path))
