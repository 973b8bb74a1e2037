"""The console's login, request by request: who gets what, with every sort of cookie, secret, Host and Origin."""

import asyncio
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from control_plane import console_login
from control_plane.config import Settings
from control_plane.console_login import create_link
from control_plane.core.model.errors import NotAllowed, Unavailable
from ui.login.middleware import LoginRequired

PORT = 8701
HOST = f"127.0.0.1:{PORT}"
ORIGIN = f"http://{HOST}"
STREAM = "/_stcore/stream"


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(f"<html><head></head>run gpt2-1 {dict(request.headers)}</html>")


async def stream(socket: WebSocket) -> None:
    await socket.accept(subprotocol="streamlit")
    await socket.send_json([socket.headers.get("x-steerway-session"), socket.headers["sec-websocket-protocol"]])
    await socket.close()


async def data(request: Request) -> JSONResponse:
    return JSONResponse({"loss": 1.0})


def check_token(token: str) -> None:
    if token == "down":
        raise Unavailable("the gateway does not answer")
    if token != "adas-token":
        raise NotAllowed("the token is unknown, expired or revoked")


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", console_port=PORT)


@pytest.fixture
def browser_of(where: Settings) -> Iterator[Any]:
    """Makes browsers: clients with their own cookies."""
    streamlit = Starlette(
        routes=[WebSocketRoute(STREAM, stream), Route("/media/file", data), Route("/{rest:path}", page)]
    )

    def make(of: Settings = where) -> TestClient:
        return TestClient(LoginRequired(streamlit, of, check_token), base_url=ORIGIN, follow_redirects=False)

    return make


@pytest.fixture
def stranger(browser_of: Any) -> TestClient:
    return browser_of()


def key_of(link: str) -> str:
    return link.split("#key=")[1].split("&")[0]


def log_in(browser: TestClient, where: Settings, **body: str) -> str:
    """The secret that the page gets."""
    sent = body or {"key": key_of(create_link(where))}
    answer = browser.post("/login", json=sent, headers={"Origin": ORIGIN})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["secret"])


def streams(browser: TestClient, secret: str | None, **headers: str) -> list[str] | None:
    """What the stream says at first; None if it is refused."""
    protocols = ["streamlit", "xsrf", "session", *([f"steerway.{secret}"] if secret is not None else [])]
    try:
        with browser.websocket_connect(
            f"ws://{HOST}{STREAM}", subprotocols=protocols, headers={"Origin": ORIGIN} | headers
        ) as socket:
            return list(socket.receive_json())
    except (WebSocketDisconnect, WebSocketDenialResponse):
        return None


def test_stranger_gets_the_login_page_and_nothing_else(stranger: TestClient) -> None:
    for path in ("/", "/run?run=gpt2-1", "/media/file", "/_stcore/host-config", "/component/x/index.html"):
        plain, navigated = stranger.get(path), stranger.get(path, headers={"Accept": "text/html"})
        assert plain.status_code == 401, path
        assert (navigated.status_code, navigated.headers["location"][:13]) == (303, "/login#page=%"), path
        assert "gpt2-1" not in plain.text + navigated.text
    assert "Steerway" in stranger.get("/login").text
    assert streams(stranger, None) is None
    assert streams(stranger, "guessed") is None


@pytest.mark.parametrize("path", ["/_stcore/agent/mcp", "/_stcore/metrics", "//media/file"])
def test_what_the_console_does_not_use_is_closed_to_users_too(browser_of: Any, where: Settings, path: str) -> None:
    browser = browser_of()
    log_in(browser, where)
    request = browser.build_request("GET", ORIGIN)
    request.url = httpx.URL(ORIGIN).copy_with(raw_path=path.encode())  # as it stands, not made simpler by the client
    assert browser.send(request).status_code == 404
    assert browser.put("/_stcore/upload_file/s/f", content=b"x").status_code == 401
    assert browser.put("/media/file", content=b"x").status_code == 405


def test_file_is_taken_from_a_steering_page_of_this_address_only(browser_of: Any, where: Settings) -> None:
    path = "/_stcore/upload_file/some-session/some-file"
    ada = browser_of()
    secret = log_in(ada, where)
    whole = {"Origin": ORIGIN, "X-Steerway-Secret": secret}
    assert ada.put(path, content=b"x", headers=whole).status_code not in (401, 403)
    for lacking in (
        {},
        {"Origin": ORIGIN},
        {"X-Steerway-Secret": secret},
        whole | {"X-Steerway-Secret": "guessed"},
        whole | {"Origin": "http://127.0.0.1:1"},
    ):
        assert ada.put(path, content=b"x", headers=lacking).status_code == 401, lacking
    assert browser_of().put(path, content=b"x", headers=whole).status_code == 401, "no cookie"
    assert ada.put(path + "/../x", content=b"x", headers=whole).status_code == 405
    viewer = browser_of()
    shown = log_in(viewer, where, key=key_of(create_link(where, role="viewer")))
    assert viewer.put(path, content=b"x", headers=whole | {"X-Steerway-Secret": shown}).status_code == 403


def test_key_works_once_and_the_session_knows_its_role(browser_of: Any, where: Settings) -> None:
    link = create_link(where, role="viewer", page="/run?run=gpt2-1")
    assert link.startswith(f"{ORIGIN}/login#key=")
    assert link.endswith("&page=%2Frun%3Frun%3Dgpt2-1")
    ada, bob = browser_of(), browser_of()
    secret = log_in(ada, where, key=key_of(link))

    shown = streams(ada, secret)
    assert shown is not None
    session = console_login.read_session(where, shown[0])
    assert session is not None
    assert (session.role, session.token) == ("viewer", None)
    assert shown[1] == "streamlit, xsrf, session", "the secret goes no further"
    assert "gpt2-1" in ada.get("/").text

    replayed = bob.post("/login", json={"key": key_of(link)}, headers={"Origin": ORIGIN})
    assert (replayed.status_code, dict(bob.cookies)) == (401, {})
    assert "steer console" in replayed.json()["detail"]


def test_token_logs_in_if_the_gateway_knows_it(browser_of: Any, where: Settings) -> None:
    ada = browser_of()
    shown = streams(ada, log_in(ada, where, token="adas-token"))
    assert shown is not None
    session = console_login.read_session(where, shown[0])
    assert session is not None
    assert session.token == "adas-token"
    for token, status in (("bobs-token", 401), ("down", 503)):
        answer = browser_of().post("/login", json={"token": token}, headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers.get("set-cookie")) == (status, None)
        assert token not in answer.text or token == "down"


def test_cookie_is_out_of_reach_of_scripts_and_other_sites(browser_of: Any, where: Settings) -> None:
    answer = browser_of().post("/login", json={"key": key_of(create_link(where))}, headers={"Origin": ORIGIN})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"steerway_console_{PORT}=")
    assert {"HttpOnly", "SameSite=strict", "Max-Age=43200", "Path=/"} <= set(cookie.split("; "))


def test_cookie_without_its_secret_shows_nothing(browser_of: Any, where: Settings) -> None:
    """Browsers send a cookie to every port of a host: a server of somebody else's has it, but not the secret."""
    ada, bob = browser_of(), browser_of()
    ours, theirs = log_in(ada, where), log_in(bob, where)
    for secret in (None, "", theirs, "x" * 300, ours[:-1]):
        assert streams(ada, secret) is None, secret
        told = ada.get("/login/session", headers={} if secret is None else {"X-Steerway-Secret": secret})
        assert told.status_code == 401
    assert streams(ada, ours) is not None
    assert ada.get("/login/session", headers={"X-Steerway-Secret": ours}).status_code == 204
    assert streams(browser_of(), ours) is None, "nor does the secret without its cookie"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"http://localhost:{PORT}"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": f"https://{HOST}"},
        {"Origin": "http://evil.example:8701"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Host": "evil.example:8701", "Origin": "http://evil.example:8701"},
        {"Host": "127.0.0.1:9999", "Origin": f"http://{HOST}"},
        {"Host": "console.example", "Origin": "https://console.example"},
    ],
)
def test_pages_of_another_address_are_nobody(browser_of: Any, where: Settings, headers: dict[str, str]) -> None:
    browser = browser_of()
    secret = log_in(browser, where)
    key = key_of(create_link(where))
    assert streams(browser, secret, **headers) is None
    assert browser.post("/login", json={"key": key}, headers={"Origin": ORIGIN} | headers).status_code == 403
    if not headers.get("Host", HOST).startswith("127.0.0.1"):
        assert browser.get("/", headers=headers).status_code == 403
        assert browser.get("/login", headers=headers).status_code == 403
    assert browser.post("/login", json={"key": key}, headers={"Origin": ORIGIN}).status_code == 200, "not used up"


@pytest.mark.parametrize("host", ["127.0.0.1:9999", "localhost", "localhost:18701", "[::1]:18701"])
def test_console_is_reached_through_a_tunnel_under_any_port(browser_of: Any, where: Settings, host: str) -> None:
    browser = browser_of()
    secret = log_in(browser, where)
    assert streams(browser, secret, Host=host, Origin=f"http://{host}") is not None
    assert streams(browser, secret, Host=host, Origin=f"https://{host}") is None, "nothing adds TLS to a tunnel"


def test_console_behind_an_ingress_accepts_its_name_over_tls(
    browser_of: Any, where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = where.model_copy(update={"public_names": ("console.example",)})
    browser = browser_of(public)
    secret = log_in(browser, where)
    headers = {"Host": "console.example", "Origin": "https://console.example"}
    assert streams(browser, secret, **headers) is not None
    assert streams(browser, secret, **(headers | {"Origin": "https://other.example"})) is None


def test_stream_without_an_origin_is_refused(browser_of: Any, where: Settings) -> None:
    browser = browser_of()
    secret = log_in(browser, where)
    with (
        pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)),
        browser.websocket_connect(f"ws://{HOST}{STREAM}", subprotocols=["streamlit", f"steerway.{secret}"]),
    ):
        pass
    assert browser.post("/login", json={"key": key_of(create_link(where))}).status_code == 403


def test_session_cannot_be_named_by_the_client(browser_of: Any, where: Settings) -> None:
    ada, bob = browser_of(), browser_of()
    ours, theirs = streams(ada, log_in(ada, where)), streams(bob, log_in(bob, where))
    assert ours is not None
    assert theirs is not None
    secret = log_in(ada, where)
    claimed = streams(ada, secret, **{"X-Steerway-Session": theirs[0]})
    assert claimed is not None
    assert claimed[0] not in (theirs[0], ours[0])
    assert theirs[0] not in ada.get("/", headers={"X-Steerway-Session": theirs[0]}).text


def test_keys_and_sessions_end_after_twelve_hours(
    browser_of: Any, where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = browser_of()
    link, secret = create_link(where), log_in(browser, where)
    later = time.time() + console_login.VALID_S + 1
    monkeypatch.setattr(console_login.time, "time", lambda: later)
    assert streams(browser, secret) is None
    assert browser.get("/").status_code == 401
    late = browser_of().post("/login", json={"key": key_of(link)}, headers={"Origin": ORIGIN})
    assert late.status_code == 401


def test_logging_out_ends_the_session_and_needs_the_secret(browser_of: Any, where: Settings) -> None:
    browser = browser_of()
    secret = log_in(browser, where)
    assert browser.post("/logout", headers={"Origin": ORIGIN}).status_code == 204
    assert streams(browser, secret) is not None
    browser.post("/logout", headers={"Origin": ORIGIN, "X-Steerway-Secret": secret})
    assert streams(browser, secret) is None


def test_nobody_may_frame_it_and_our_script_comes_first(browser_of: Any, where: Settings) -> None:
    browser = browser_of()
    log_in(browser, where)
    for path in ("/", "/login", "/static/x.js"):
        answer = browser.get(path)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
        assert (answer.headers["x-frame-options"], answer.headers["x-content-type-options"]) == ("DENY", "nosniff")
    shown = browser.get("/run")
    assert '<head><script src="/login/session.js"></script>' in shown.text
    assert int(shown.headers["content-length"]) == len(shown.content)
    assert shown.headers["cache-control"] == "no-store"
    component = browser.get("/component/chart/index.html")
    assert "frame-ancestors 'self'" in component.headers["content-security-policy"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"key": 1}', b'{"key": "a", "token": "b"}', b"x" * 5000, b"\xff"]
)
def test_bad_logins_are_refused_with_a_sentence(stranger: TestClient, body: bytes) -> None:
    answer = stranger.post("/login", content=body, headers={"Origin": ORIGIN})
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) > 10


def test_files_are_private_and_hold_no_secret(browser_of: Any, where: Settings) -> None:
    before = os.umask(0)
    try:
        browser = browser_of()
        key = key_of(create_link(where))
        secret = log_in(browser, where)
        cookie = browser.cookies[f"steerway_console_{PORT}"]
        texts = []
        for path in (where.home / "console").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            texts += [str(path), path.read_text() if path.is_file() else ""]
    finally:
        os.umask(before)
    for hidden in (key, secret, cookie):
        assert not any(hidden in text for text in texts)
        assert any(hashlib.sha256(hidden.encode()).hexdigest() in text for text in texts)


def test_damaged_session_file_is_no_session(browser_of: Any, where: Settings) -> None:
    browser = browser_of()
    secret = log_in(browser, where)
    for path in (where.home / "console" / "sessions").iterdir():
        path.write_text(json.dumps({"expires_at": 1e12, "secret_sha256": 5}))
    assert streams(browser, secret) is None


@pytest.mark.parametrize("path", ["/static/../media/file", "/static/./x", "/a\\b", "/static//media/file"])
def test_paths_that_are_not_plain_are_answered_by_nobody(where: Settings, path: str, browser_of: Any) -> None:
    """A client makes such a path simpler before it sends it, so this one is given to the application as it stands."""
    app = browser_of().app
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", HOST.encode())]}
    said: list[Any] = []

    async def call() -> None:
        async def send(message: Any) -> None:
            said.append(message)

        await app(scope, None, send)

    asyncio.run(call())
    assert said[0]["status"] == 404


def test_address_of_all_runs_leads_to_the_first_page(browser_of: Any, where: Settings) -> None:
    browser = browser_of()
    log_in(browser, where)
    answer = browser.get("/runs", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (307, "/")
