"""What a stranger may hold: no body is waited for, few streams are, and no answer is guessed at."""

import asyncio
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from control_plane.config import Role
from control_plane.gateway import app as front
from control_plane.gateway import proxy, stream
from control_plane.gateway.admission import AdmissionControl
from control_plane.gateway.app import create_app
from control_plane.gateway.proxy import ProxyAdmission
from tests.gateway.access.test_admission import SMALL, answered, posted
from tests.gateway.conftest import Rig
from tests.gateway.hostile.test_slow_clients import scope
from tests.gateway.rig import API, HOST, RUN, TOKENS, Runs, live_gateway, token_book

CHUNKED = (b"transfer-encoding", b"chunked")
ROLES_AND_NOBODY: list[Role | None] = [None, "viewer", "operator"]


@pytest.mark.parametrize("role", ROLES_AND_NOBODY)
@pytest.mark.parametrize("announced", [SMALL, CHUNKED])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/runs", "/nothing"])
def test_body_of_a_question_is_refused_unread(
    tmp_path: Path, path: str, method: str, announced: tuple[bytes, bytes], role: Role | None
) -> None:
    app = create_app(Runs(tmp_path), token_book(), allowed_hosts=[HOST], allowed_origins=[])
    asked = posted(role, announced, path=path, method=method)
    ((status, headers, body),) = answered(app, asked)
    assert (status, headers["connection"], body["type"]) == (413, "close", "/problems/too-large")


def test_proxy_refuses_the_body_of_a_question(tmp_path: Path) -> None:
    async def nobody(*_: Any) -> None:
        raise AssertionError("it went on to the app")

    ((status, headers, _),) = answered(
        ProxyAdmission(nobody, AdmissionControl(token_book())), posted(None, SMALL, path="/health", method="GET")
    )
    assert (status, headers["connection"], headers["x-content-type-options"]) == (413, "close", "nosniff")


@pytest.mark.parametrize("announced", [SMALL, CHUNKED])
@pytest.mark.parametrize(("method", "path"), [("POST", "/runs"), ("PUT", "/nothing"), ("DELETE", "/health")])
def test_body_of_a_stranger_is_not_waited_for(
    tmp_path: Path, method: str, path: str, announced: tuple[bytes, bytes]
) -> None:
    app = create_app(Runs(tmp_path), token_book(), allowed_hosts=[HOST], allowed_origins=[])
    ((status, _, _),) = answered(app, posted(None, announced, path=path, method=method))
    assert status == 401


def test_question_that_says_it_has_no_body_is_answered(rig: Rig) -> None:
    assert rig.web.get(f"{API}/health", headers={"Content-Length": "0"}).status_code == 200


def test_streams_of_strangers_are_few_and_their_places_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_UNAUTHENTICATED", 3)
    monkeypatch.setattr(stream, "AUTH_DEADLINE_S", 0.5)
    app = create_app(Runs(tmp_path), token_book(), allowed_hosts=[HOST], allowed_origins=[])

    async def close_code(*said: dict[str, Any]) -> int:
        sent, first = list[Any](), [{"type": "websocket.connect"}, *said]

        async def receive() -> Any:
            return first.pop(0) if first else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope("websocket", f"/runs/{RUN}/stream", scheme="ws", subprotocols=[]), receive, send)
        return int(sent[-1]["code"])

    async def watch() -> tuple[list[int], int]:
        codes = await asyncio.gather(*(close_code() for _ in range(5)))
        shown = {"type": "websocket.receive", "text": json.dumps({"token": TOKENS["viewer"]})}
        return sorted(codes), await close_code(shown)

    assert asyncio.run(watch()) == ([1013, 1013, 4401, 4401, 4401], 4404)
    assert not app.state.unauthenticated


def test_streams_of_strangers_are_few_at_the_proxy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_UNAUTHENTICATED", 3)

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        """An app that has no time for anybody yet."""
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "it is with the app"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    def wrap(_: Any) -> Any:
        return ProxyAdmission(busy, AdmissionControl(token_book()))

    reasons: list[str] = []
    with live_gateway(tmp_path, wrap) as gateway, ExitStack() as opened:

        def enter() -> ClientConnection | None:
            """A connection that the app has; None if it was sent away."""
            made = opened.enter_context(connect(gateway.url.replace("http", "ws"), proxy=None))
            try:
                made.recv(timeout=10)
            except ConnectionClosed as closed:
                reasons.append(str(closed))
                return None
            return made

        def enter_soon() -> ClientConnection:
            deadline = time.monotonic() + 20
            while (made := enter()) is None:
                assert time.monotonic() < deadline
            return made

        held = [enter() for _ in range(4)]
        assert [each is None for each in held] == [False, False, False, True]
        assert held[0] is not None
        assert held[1] is not None
        held[0].send("{}")  # it speaks: from here on the app knows whom it serves
        enter_soon()
        assert enter() is None
        held[1].close()
        enter_soon()
        assert enter() is None
    assert all("1013" in reason and "retry" in reason for reason in reasons), reasons


@pytest.mark.parametrize("path", ["/health", "/runs", "/openapi.json", f"/runs/{RUN}/logs", "/nothing"])
def test_no_answer_is_guessed_at(rig: Rig, path: str) -> None:
    for answer in (rig.get(path), rig.web.get(API + path), rig.web.delete(API + path)):
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    wrong_host = rig.web.get(API + path, headers={"Host": "evil.example"})
    assert (wrong_host.status_code, wrong_host.headers["x-content-type-options"]) == (421, "nosniff")


def test_failure_that_nobody_foresaw_is_not_guessed_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(front, "_take_body", fail)
    answer = rig.get("/runs")
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")


def test_openapi_is_built_before_anybody_asks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(app: FastAPI) -> dict[str, Any]:
        raise AssertionError("it is built inside the event loop")

    monkeypatch.setattr(FastAPI, "openapi", build)
    front._description.cache_clear()
    assert rig.get("/openapi.json").json()["info"]["title"] == "Steerway"
