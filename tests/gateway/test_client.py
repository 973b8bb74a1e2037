"""The client: against a real gateway, a dead one, and things that are not one."""

import math
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from control_plane.addresses import token_of
from control_plane.api.patience import COMES_BACK_WITHIN_S, patience_of
from control_plane.client import LEAST_SUBMIT_TRIES, NotSettledYet, SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.commands import Evaluate, Pause, Resume, SetLearningRate
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, NotFound, RunEnded, Unavailable
from control_plane.core.model.records import Entry
from tests.core import examples
from tests.gateway.rig import KNOBS, RUN, TOKENS, LiveGateway, live_gateway, settle


def client_of(live: LiveGateway, role: str = "operator") -> SteerwayClient:
    """A client with this role's token."""
    return SteerwayClient(live.url, TOKENS[role])  # type: ignore[index]


def client_over(answer: Callable[[httpx.Request], httpx.Response]) -> SteerwayClient:
    """A client whose requests are answered by this function."""
    return SteerwayClient("http://127.0.0.1:8700", "a-token", transport=httpx.MockTransport(answer))


def test_client_asks_everything_of_a_run(live: LiveGateway) -> None:
    logs = live.runs.files(RUN).logs
    logs.mkdir()
    (logs / "rank-0.log").write_text("one\ntwo\n")
    with client_of(live) as client:
        assert client.health()["status"] == "ok"
        assert [run.run for run in client.runs()] == [RUN]
        assert (client.snapshot(RUN).step, client.snapshot(RUN).knobs) == (4, KNOBS)
        assert math.isnan(client.snapshot(RUN).latest["loss"])
        assert [entry.seq for entry in client.journal(RUN, after=1)] == [2, 3]
        assert [point.name for point in client.metrics(RUN, names=["loss"]).points] == ["loss", "loss"]
        assert client.logs(RUN, "rank-0", lines=1) == "two\n"


def test_client_submits_and_waits_for_the_end(live: LiveGateway) -> None:
    with client_of(live) as client:
        receipt = client.submit(RUN, SetLearningRate(value=3e-5), reason="it stalls", not_before_step=7)
        settling = threading.Timer(0.2, lambda: live.call(settle(live.server, receipt.uuid, 12, {"lr": [3e-5]})))
        settling.start()
        view = client.wait_settled(RUN, receipt.uuid, timeout_s=20)
        settling.join()
    assert (view.status, view.settled and view.settled.step) == ("applied", 12)
    assert (view.command.reason, view.command.not_before_step) == ("it stalls", 7)


def test_client_that_waits_in_vain_says_that_the_command_goes_on_waiting(live: LiveGateway) -> None:
    with client_of(live) as client:
        receipt = client.submit(RUN, Pause())
        with pytest.raises(NotSettledYet, match="still pending") as waited:
            client.wait_settled(RUN, receipt.uuid, timeout_s=0.1)
    assert waited.value.exit_code == 124


def test_refusals_arrive_as_the_class_that_was_raised(live: LiveGateway) -> None:
    with client_of(live) as client:
        with pytest.raises(Conflict, match="is not paused"):
            client.submit(RUN, Resume())
        with pytest.raises(NotFound) as unknown:
            client.submit(RUN, SetLearningRate(value=1e-4, group=9))
        assert unknown.value.detail["groups"] == ["decay", "no_decay"]
        with pytest.raises(NotFound, match="run-2"):
            client.snapshot("run-2")
        with pytest.raises(NotFound):
            client.command(RUN, uuid4())
        with pytest.raises(Invalid, match="limit"):
            client.journal(RUN, limit=5000)
        live.call(live.server.close("finished", None))
        with pytest.raises(RunEnded, match="has finished"):
            client.submit(RUN, Evaluate())
    with client_of(live, "viewer") as viewer, pytest.raises(NotAllowed, match="viewer"):
        viewer.submit(RUN, Pause())
    with SteerwayClient(live.url, "nobody") as stranger, pytest.raises(NotAllowed, match="unknown, expired or revoked"):
        stranger.runs()


class LosesAnswers:
    """The app takes every command, but its first answers to commands and most streams are lost on the way."""

    def __init__(self, app: Any, answers: int = 0, messages_per_stream: int = 1000) -> None:
        self.app, self.answers, self.messages_per_stream = app, answers, messages_per_stream
        self.streams = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection."""
        if scope["type"] == "websocket":
            self.streams += 1
            await self.app(scope, receive, self.breaking(send))
        elif scope["type"] == "http" and scope["method"] == "POST" and self.answers:
            self.answers -= 1
            await self.app(scope, receive, self.swallow)
        else:
            await self.app(scope, receive, send)

    async def swallow(self, message: Any) -> None:
        """The answer is lost; the web server says 500 in its place."""

    def breaking(self, send: Any) -> Any:
        """A stream that breaks after some messages."""
        left = self.messages_per_stream

        async def send_some(message: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionResetError("the line broke")
            await send(message)

        return send_some


def test_command_whose_answers_were_lost_is_taken_once(tmp_path: Path) -> None:
    with (
        live_gateway(tmp_path, lambda app: LosesAnswers(app, answers=LEAST_SUBMIT_TRIES - 1)) as live,
        client_of(live) as client,
    ):
        receipt = client.submit(RUN, Pause())
        assert [view.command.uuid for view in client.snapshot(RUN).commands] == [receipt.uuid]


def test_stream_over_a_line_that_breaks_tells_each_entry_once(tmp_path: Path) -> None:
    faults: list[LosesAnswers] = []

    def break_often(app: Any) -> LosesAnswers:
        faults.append(LosesAnswers(app, messages_per_stream=3))
        return faults[0]

    with live_gateway(tmp_path, break_often) as live, client_of(live) as client:
        for number in range(4):
            live.call(live.server.submit(examples.command(number)))
        live.call(live.server.close("finished", None))
        seq = live.call(live.server.snapshot()).seq
        heard: list[Entry] = []
        for entry in client.stream(RUN, after=1):
            heard.append(entry)
            if entry.seq == seq:
                break
    assert [entry.seq for entry in heard] == list(range(2, seq + 1))
    assert faults[0].streams > 2


def test_stream_ends_with_the_run(live: LiveGateway) -> None:
    with client_of(live, "viewer") as client:
        closing = threading.Timer(0.2, lambda: live.call(live.server.close("stopped", None)))
        closing.start()
        assert [entry.record.type for entry in client.stream(RUN, after=3)] == ["RunClosed"]
        closing.join()


def test_stream_that_is_refused_says_why(live: LiveGateway) -> None:
    with client_of(live) as client, pytest.raises(NotFound, match="run-2"):
        next(client.stream("run-2"))
    with SteerwayClient(live.url, "nobody") as stranger, pytest.raises(NotAllowed):
        next(stranger.stream(RUN))


def test_gateway_that_is_dead_is_unavailable_with_a_hint() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with SteerwayClient(url, "a-token") as client:
            for ask in (client.runs, lambda: client.submit(RUN, Pause()), lambda: next(client.stream(RUN))):
                with pytest.raises(Unavailable, match=f"no gateway answers at {url}.*steer up"):
                    ask()


def test_submit_repeats_itself_with_the_same_uuid_and_gives_up_in_the_end() -> None:
    keys: list[str] = []

    def away(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        raise httpx.ReadTimeout("no answer")

    with client_over(away) as client, pytest.raises(Unavailable, match="may or may not have taken effect"):
        client.submit(RUN, Pause())
    assert (len(keys), len(set(keys))) == (LEAST_SUBMIT_TRIES, 1)


@pytest.mark.parametrize(("patience_s", "asked"), [(60.0, 6), (0.0, 1)])
def test_question_that_nobody_answers_is_repeated_by_a_patient_client(
    patience_s: float, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    tries: list[httpx.Request] = []

    def comes_back(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        if len(tries) < 6:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"status": "ok"})

    over = httpx.MockTransport(comes_back)
    with SteerwayClient("http://127.0.0.1:8700", "a-token", patience_s=patience_s, transport=over) as client:
        if patience_s:
            assert client.health() == {"status": "ok"}
        else:
            with pytest.raises(Unavailable, match="no gateway answers"):
                client.health()
    assert len(tries) == asked


def test_patience_is_for_a_gateway_that_may_be_there(tmp_path: Path) -> None:
    here = Settings(home=tmp_path)
    assert patience_of(here) == 0
    here.cluster_file.write_text("{}")
    assert patience_of(here) == COMES_BACK_WITHIN_S
    assert patience_of(Settings(home=tmp_path / "none", url="https://gateway.example.org")) == COMES_BACK_WITHIN_S


def test_submit_that_is_refused_is_not_repeated() -> None:
    asked: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        problem = {"type": "/problems/conflict", "status": 409, "detail": "it is paused"}
        return httpx.Response(409, json=problem, headers={"content-type": "application/problem+json"})

    with client_over(refuse) as client, pytest.raises(Conflict, match="it is paused"):
        client.submit(RUN, Pause(), uuid=UUID(int=7))
    assert [request.headers["Idempotency-Key"] for request in asked] == [str(UUID(int=7))]


STRANGE_ANSWERS = {
    "a page": httpx.Response(200, html="<html>hello</html>"),
    "a page of errors": httpx.Response(502, html="<html>bad gateway</html>"),
    "a redirect": httpx.Response(307, headers={"Location": "http://evil.test/"}),
    "truncated JSON": httpx.Response(200, content=b'{"runs": [{"run": "a'),
    "a list": httpx.Response(200, json=[1]),
    "another object": httpx.Response(200, json={"hello": "world"}),
    "runs of another shape": httpx.Response(200, json={"runs": [{"id": 7}]}),
    "runs that are none": httpx.Response(200, json={"runs": 7}),
    "nothing": httpx.Response(204),
    "bytes": httpx.Response(200, content=b"\xff\xfe\x00"),
    "a truncated problem": httpx.Response(409, content=b'{"type', headers={"content-type": "application/problem+json"}),
}


@pytest.mark.parametrize("answer", STRANGE_ANSWERS.values(), ids=STRANGE_ANSWERS.keys())
def test_answer_that_is_not_ours_is_unavailable_with_a_sentence(answer: httpx.Response) -> None:
    with client_over(lambda request: answer) as client, pytest.raises(Unavailable) as found:
        client.runs()
    assert " " in found.value.reason


def test_problem_of_a_newer_gateway_is_sorted_by_its_status() -> None:
    problem = httpx.Response(
        413,
        json={"type": "/problems/too-new", "detail": "no", "reason": "x", "self": 1},
        headers={"content-type": "application/problem+json"},
    )
    with client_over(lambda request: problem) as client, pytest.raises(Invalid, match="no") as found:
        client.runs()
    assert found.value.detail == {"reason": "x", "self": 1}


def test_run_id_that_climbs_is_refused_before_anything_is_sent() -> None:
    with client_over(lambda request: pytest.fail("it was sent")) as client, pytest.raises(Invalid, match="run id"):
        client.snapshot("../tokens")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8700",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://[::1",
        "http://127.0.0.1:8700@gateway.test",
        "http://gateway.test\\@127.0.0.1:8700",
        "http://127.0.0.1 .gateway.test",
    ],
)
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="address"):
        SteerwayClient(url, "a-token")


@pytest.mark.parametrize("token", ["", " \n", "canary\nX-Evil: 1", "canary\N{EURO SIGN}", "canary canary"])
def test_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(Invalid) as refused:
        SteerwayClient("http://127.0.0.1:8700", token)
    assert "canary" not in refused.value.reason


def test_token_is_taken_from_the_settings_or_from_its_file(live: LiveGateway, tmp_path: Path) -> None:
    where = Settings(home=tmp_path, url=live.url)
    with pytest.raises(NotAllowed, match=r"no token at .*operator: is a cluster up\? start one with `steer up`"):
        SteerwayClient.from_settings(where)
    where.token_file("operator").parent.mkdir()
    where.token_file("operator").write_text(TOKENS["operator"] + "\n")
    with SteerwayClient.from_settings(where) as client:
        assert client.submit(RUN, Pause()).status == "accepted"
    with SteerwayClient.from_settings(where.model_copy(update={"token": TOKENS["viewer"]})) as viewer:
        assert viewer.runs()
        with pytest.raises(NotAllowed):
            viewer.submit(RUN, Resume())


ANOTHER = "https://gateway.test:8700"


@pytest.mark.parametrize(
    "url", [ANOTHER, "http://gateway.test:8700", "http://127.1:8700", "http://2130706433", "http:/"]
)
def test_token_of_this_installation_goes_to_no_other_machine(tmp_path: Path, url: str) -> None:
    where = Settings(home=tmp_path, url=url, insecure=True)
    where.token_file("operator").parent.mkdir()
    where.token_file("operator").write_text(TOKENS["operator"])
    with pytest.raises(NotAllowed, match="own token is not sent there: set STEERWAY_TOKEN"):
        SteerwayClient.from_settings(where)
    assert token_of(where.model_copy(update={"token": "theirs"}), "operator") == "theirs"


@pytest.mark.parametrize(
    "url", [None, "http://127.0.0.1:9", "http://127.8.9.10:9", "http://[::1]:9", "http://localhost:9"]
)
def test_token_of_this_installation_goes_to_this_machine(tmp_path: Path, url: str | None) -> None:
    where = Settings(home=tmp_path, url=url, host="10.0.0.5")
    where.token_file("operator").parent.mkdir()
    where.token_file("operator").write_text(TOKENS["operator"])
    assert token_of(where, "operator") == TOKENS["operator"]
    SteerwayClient.from_settings(where).close()


@pytest.mark.parametrize("url", ["http://gateway.test:8700", "http://10.0.0.5", "http://localhost.gateway.test"])
def test_token_goes_over_plain_http_to_another_machine_only_where_that_was_said(url: str) -> None:
    where = settings({"STEERWAY_URL": url, "STEERWAY_TOKEN": "a-token"})
    with pytest.raises(Invalid, match=r"plain http to another machine .* use https, .* STEERWAY_INSECURE=1"):
        SteerwayClient.from_settings(where)
    insecure = settings({"STEERWAY_URL": url, "STEERWAY_TOKEN": "a-token", "STEERWAY_INSECURE": "1"})
    SteerwayClient.from_settings(insecure).close()
    assert "STEERWAY_INSECURE" not in insecure.environment()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.8.9.10:9", "http://[::1]:9", "https://localhost:9"])
def test_proxy_of_the_environment_is_not_asked_for_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _name_a_proxy(monkeypatch)
    with SteerwayClient(url, "a-token") as client:
        assert not client._http._mounts


def test_proxy_of_the_environment_sees_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel through it is all that https asks of a proxy; plain http would show it the token."""
    _name_a_proxy(monkeypatch)
    with SteerwayClient(ANOTHER, "a-token") as tunnelled, SteerwayClient("http://g.test", "t", insecure=True) as plain:
        assert tunnelled._http._mounts
        assert not plain._http._mounts


def _name_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://proxy.test:3128")
        monkeypatch.setenv(name.lower(), "http://proxy.test:3128")


def test_client_loads_no_framework() -> None:
    heavy = "{'ray', 'torch', 'fastapi', 'starlette', 'streamlit', 'httpx', 'websockets', 'tenacity'}"
    script = f"import control_plane.client, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
