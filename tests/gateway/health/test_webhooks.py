"""Webhooks: signed, in order, at least once, from where they were; nothing waits for them, and no secret leaks."""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.api.messages import Report, RunSummary
from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.core.model.health import HealthChange
from control_plane.gateway.health.webhooks import GIVE_UP_AFTER_S, Webhooks, read_webhooks
from control_plane.server.control_server import ControlServer
from tests.core.examples import alert, cleared
from tests.server.rig import Rig, start
from tests.server.virtual_time import now_s, run

URL = "https://hooks.example/T0/canary-path"
SECRET = "canary-secret-of-the-hook"


def listed(tmp_path: Path, *webhooks: dict[str, Any]) -> Path:
    path = tmp_path / "webhooks.json"
    path.write_text(json.dumps(webhooks))
    path.chmod(0o600)
    return path


class OneRun:
    """A directory of one run. Satisfies `webhooks.Runs`."""

    def __init__(self, server: ControlServer) -> None:
        self.server, self.away = server, False

    async def list(self) -> Sequence[RunSummary]:
        if self.away:
            raise Unavailable("the control server does not answer")
        return [RunSummary.of(await self.server.snapshot())]

    async def handle(self, run: str) -> Any:
        return self.server


class Receiver:
    """A service that takes messages, or answers otherwise."""

    def __init__(self, answer: Callable[[int], int] = lambda count: 200) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status = self._answer(len(self.requests))
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    @property
    def texts(self) -> list[str]:
        return [json.loads(request.content)["text"] for request in self.requests]


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Virtual time has no threads."""
    return function(*args)


def loop_of(tmp_path: Path, runs: OneRun, receiver: Receiver, path: Path) -> Webhooks:
    return Webhooks(
        path, tmp_path / "cursors", runs, transport=httpx.MockTransport(receiver), clock=now_s, in_thread=at_once
    )


async def for_a_while(webhooks: Webhooks, seconds: float = 30.0) -> None:
    """Let the loop run, then end it as a gateway that is stopped does."""
    task = asyncio.create_task(webhooks.run_forever())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def served(tmp_path: Path) -> ControlServer:
    server = Rig(tmp_path / "run").serve()
    await server.start_generation(start())
    return server


async def raised(server: ControlServer, *alerts: Any) -> None:
    await server.report(Report(generation=1, health=(HealthChange(raised=alerts),)))


def test_message_is_signed_and_has_the_alert_and_a_sentence(tmp_path: Path) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver()
        path = listed(tmp_path, {"name": "ops", "url": URL, "secret": SECRET})
        webhooks = loop_of(tmp_path, OneRun(server), receiver, path)
        await for_a_while(webhooks)
        await raised(server, alert(sentence="a <!channel> & more"), alert("plateau", level="info"))
        await for_a_while(webhooks)
        (request,) = receiver.requests
        stamp = request.headers["Steerway-Timestamp"]
        expected = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.content, hashlib.sha256).hexdigest()
        assert request.headers["Steerway-Signature"] == f"sha256={expected}"
        message = json.loads(request.content)
        assert (message["type"], message["run"]) == ("AlertRaised", "demo")
        assert message["body"]["alert"]["kind"] == "loss_spike"
        assert message["text"] == "demo: warning at step 12: a &lt;!channel&gt; &amp; more"

    run(story())


def test_slack_gets_the_text_alone_and_is_told_of_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver()
        path = listed(tmp_path, {"name": "s", "url": URL, "format": "slack"})
        webhooks = loop_of(tmp_path, OneRun(server), receiver, path)
        await for_a_while(webhooks)
        await raised(server, alert())
        await server.report(Report(generation=1, health=(HealthChange(cleared=(cleared(alert()),)),)))
        await for_a_while(webhooks)
        assert [set(json.loads(request.content)) for request in receiver.requests] == [{"text"}, {"text"}]
        assert receiver.texts[1].endswith("(loss spike) cleared at step 20")
        assert "Steerway-Signature" not in receiver.requests[0].headers

    run(story())


def test_new_webhook_is_not_told_of_old_alerts_and_a_restarted_gateway_goes_on_where_it_was(tmp_path: Path) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver()
        await raised(server, alert(onset_step=1))
        path = listed(tmp_path, {"name": "ops", "url": URL})
        await for_a_while(loop_of(tmp_path, OneRun(server), receiver, path))
        assert receiver.requests == []
        await raised(server, alert(onset_step=2))
        await for_a_while(loop_of(tmp_path, OneRun(server), receiver, path))
        await for_a_while(loop_of(tmp_path, OneRun(server), receiver, path))
        assert len(receiver.requests) == 1

    run(story())


@pytest.mark.parametrize("failing", [0, 500, 429])
def test_message_is_repeated_with_growing_pauses_until_it_is_taken_and_order_is_kept(
    tmp_path: Path, failing: int
) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver(lambda count: failing if count < 6 else 200)
        webhooks = loop_of(tmp_path, OneRun(server), receiver, listed(tmp_path, {"name": "ops", "url": URL}))
        await for_a_while(webhooks)
        await raised(server, alert(sentence="first"), alert(onset_step=3, sentence="second"))
        began = now_s()
        await for_a_while(webhooks, 120.0)
        assert [text.rpartition(" ")[2] for text in receiver.texts] == ["first"] * 6 + ["second"]
        deliveries = [request.headers["Steerway-Delivery"] for request in receiver.requests]
        assert len(set(deliveries)) == 2, "a repetition can be told from a new message"
        assert now_s() - began > 1 + 2 + 4 + 8 + 16

    run(story())


@pytest.mark.parametrize("status", [400, 404, 410, 302])
def test_message_that_is_refused_is_left_out_and_the_next_one_is_sent(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver(lambda count: status if count == 1 else 200)
        webhooks = loop_of(tmp_path, OneRun(server), receiver, listed(tmp_path, {"name": "ops", "url": URL}))
        await for_a_while(webhooks)
        await raised(server, alert(sentence="first"), alert(onset_step=3, sentence="second"))
        await for_a_while(webhooks, 60.0)
        assert receiver.texts[-1].endswith("second")
        assert len(receiver.requests) == 2
        assert "was refused" in caplog.text
        assert {str(request.url) for request in receiver.requests} == {URL}, "no redirect is followed"

    run(story())


def test_receiver_that_is_away_for_a_day_loses_the_message_and_no_secret_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="control_plane")

    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver(lambda count: 0)
        path = listed(tmp_path, {"name": "ops", "url": URL, "secret": SECRET})
        webhooks = loop_of(tmp_path, OneRun(server), receiver, path)
        await for_a_while(webhooks)
        await raised(server, alert())
        await for_a_while(webhooks, GIVE_UP_AFTER_S + 1000)
        assert "could not be sent for a day (ConnectError)" in caplog.text

    run(story())
    assert "canary" not in caplog.text
    assert "canary" not in repr(read_webhooks(tmp_path / "webhooks.json"))


def test_one_webhook_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    async def story() -> None:
        server, taken = await served(tmp_path), list[str]()

        async def answer(request: httpx.Request) -> httpx.Response:
            if request.url.host == "slow.example":
                await asyncio.sleep(10**6)
            taken.append(request.url.host)
            return httpx.Response(200)

        path = listed(tmp_path, {"name": "slow", "url": "https://slow.example"}, {"name": "ops", "url": URL})
        webhooks = Webhooks(
            path,
            tmp_path / "cursors",
            OneRun(server),
            transport=httpx.MockTransport(answer),
            clock=now_s,
            in_thread=at_once,
        )
        await for_a_while(webhooks)
        await raised(server, alert())
        await for_a_while(webhooks)
        assert taken == ["hooks.example"]

    run(story())


def test_control_server_that_is_away_is_asked_again(tmp_path: Path) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver()
        runs = OneRun(server)
        path = listed(tmp_path, {"name": "ops", "url": URL})
        await for_a_while(loop_of(tmp_path, runs, receiver, path))
        await raised(server, alert())
        runs.away = True
        task = asyncio.create_task(for_a_while(loop_of(tmp_path, runs, receiver, path), 60.0))
        await asyncio.sleep(20)
        assert receiver.requests == []
        runs.away = False
        await task
        assert len(receiver.requests) == 1

    run(story())


def test_positions_that_are_damaged_begin_anew_instead_of_flooding(tmp_path: Path) -> None:
    async def story() -> None:
        server, receiver = await served(tmp_path), Receiver()
        await raised(server, alert())
        (tmp_path / "cursors").mkdir()
        (tmp_path / "cursors" / "ops.json").write_text("{half a fi")
        await for_a_while(loop_of(tmp_path, OneRun(server), receiver, listed(tmp_path, {"name": "ops", "url": URL})))
        assert receiver.requests == []

    run(story())


@pytest.mark.parametrize(
    ("webhook", "reason"),
    [
        ({"name": "ops", "url": "http://hooks.example/canary"}, "plain http to another machine"),
        ({"name": "ops", "url": "file:///canary"}, "begins with https"),
        ({"name": "Ops!", "url": URL}, "should match pattern"),
        ({"name": "ops"}, "Field required"),
        ({"name": "ops", "url": URL, "sercet": "canary"}, "Extra inputs"),
    ],
)
def test_webhook_that_cannot_be_is_refused_without_quoting_it(
    tmp_path: Path, webhook: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Damaged, match=reason) as refused:
        read_webhooks(listed(tmp_path, webhook))
    assert "canary" not in refused.value.reason


def test_file_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    path = listed(tmp_path, {"name": "ops", "url": URL})
    path.chmod(0o644)
    with pytest.raises(Damaged, match="chmod 600"):
        read_webhooks(path)
    assert read_webhooks(tmp_path / "none.json") == ()
