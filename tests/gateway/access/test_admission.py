"""Commands that are turned away before anything of them is read, in the app and in Serve's proxy."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane.config import Role
from control_plane.core.rules.admission import MAX_PENDING_OF_ONE
from control_plane.gateway import proxy
from control_plane.gateway.admission import MAX_UNREAD_BYTES, AdmissionControl, is_command
from control_plane.gateway.app import create_app
from control_plane.gateway.proxy import ProxyAdmission
from control_plane.gateway.rate_limit import RateLimit
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, HOST, ORIGIN, RUN, Runs, bearer, token_book

COMMANDS = f"/runs/{RUN}/commands"
SMALL = (b"content-length", b"2")


def posted(
    role: Role | None = "operator", *headers: tuple[bytes, bytes], path: str = COMMANDS, **changes: Any
) -> dict[str, Any]:
    """A POST as an ASGI server announces it; of nobody whom the gateway knows if there is no role."""
    token = bearer(role)["Authorization"] if role else "Bearer nobody-knows-me"
    said = [(b"host", HOST.encode()), (b"authorization", token.encode()), *headers]
    found = {"type": "http", "method": "POST", "path": API + path, "headers": said, "query_string": b""}
    return found | {"root_path": "", "scheme": "http", "server": (HOST, 80), "http_version": "1.1"} | changes


def answered(app: Any, *scopes: dict[str, Any]) -> list[tuple[int, dict[str, str], Any]]:
    """Status, headers and body of each answer. Nobody may ask for a body."""

    async def ask(scope: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        sent = list[Any]()

        async def receive() -> Any:
            raise AssertionError("somebody wants to read the body")

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, json.loads(sent[1]["body"])

    async def ask_all() -> list[tuple[int, dict[str, str], Any]]:
        return [await ask(scope) for scope in scopes]

    return asyncio.run(ask_all())


def drained(tokens: Any, *roles: Role) -> AdmissionControl:
    """A turnstile that has let the one command of each of these pass that it ever will."""
    admission = AdmissionControl(tokens, RateLimit(per_s=1e-9, burst=1))
    for role in roles:
        admission.leave(admission.enter(posted(role)))
    return admission


def app_with(admission: AdmissionControl, runs: Any = None) -> Any:
    """An app that knows no run: whatever asks for one fails."""
    return create_app(runs, token_book(), allowed_hosts=[HOST], allowed_origins=[ORIGIN], admission=admission)


async def _serve(scope: Any, receive: Any, send: Any) -> None:
    """What would be Serve behind the proxy's middleware."""
    await send({"type": "http.response.start", "status": 202, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def test_command_beyond_the_rate_is_refused_unread_and_told_when_to_come_back() -> None:
    ((status, headers, problem),) = answered(app_with(drained(token_book(), "agent")), posted("agent", SMALL))
    assert (status, problem["type"], problem["per_s"]) == (429, "/problems/overloaded", 1e-9)
    assert int(headers["retry-after"]) > 0
    assert "Connection" not in headers


def test_stranger_is_asked_who_he_is_before_any_bucket_is() -> None:
    app = app_with(drained(token_book(), "viewer", "operator", "agent", "admin"))
    (known, stranger) = answered(app, posted("operator", SMALL), posted(None, SMALL))
    assert (known[0], stranger[0]) == (429, 401)
    assert stranger[1]["www-authenticate"] == 'Bearer realm="steerway"'


def test_wrong_host_is_told_before_anybody_is_charged() -> None:
    admission = drained(token_book())
    elsewhere = posted("operator", SMALL) | {"headers": [(b"host", b"rebound.example"), *posted()["headers"][1:]]}
    assert answered(app_with(admission), elsewhere)[0][0] == 421
    assert admission.enter(posted("operator")) is not None


@pytest.mark.parametrize("length", [b"", b"-1", b"x", str(MAX_UNREAD_BYTES + 1).encode()])
def test_connection_with_a_body_that_nobody_waits_for_is_closed(length: bytes) -> None:
    app = app_with(drained(token_book(), "agent"))
    ((status, headers, _),) = answered(app, posted("agent", (b"content-length", length)))
    assert (status, headers["connection"]) == (429, "close")


def test_reads_are_not_charged(tmp_path: Path) -> None:
    admission = AdmissionControl(token_book(), RateLimit(per_s=1e-9, burst=1))
    app = app_with(admission, Runs(tmp_path))
    reads = [posted(role, path="/runs", method="GET") for role in ("viewer", "operator") for _ in range(3)]
    statuses = []

    async def read_all() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        for read in reads:
            await app(read, receive, send)

    asyncio.run(read_all())
    assert statuses == [200, None] * 6
    assert admission.enter(posted("operator")) is not None


def test_every_path_that_the_router_takes_for_a_command_is_counted(rig: Rig) -> None:
    launches = ("/runs", f"/runs/{RUN}/resume", f"/runs/{RUN}/fork", f"/runs/{RUN}/replay", "/runs/%0A/fork")
    for path in (COMMANDS, "/runs/%0A/commands", f"{COMMANDS}\n", "/runs/a b/commands", *launches):
        assert is_command(posted(path=path))
        assert rig.post(path.replace("\n", "%0A"), content="").status_code != 404
    for path in ("/runs/", f"/runs/{RUN}/job", f"{COMMANDS}/", f"{COMMANDS}/1", f"/{COMMANDS}", "/runs//commands"):
        assert not is_command(posted(path=path))
        assert rig.web.post(f"http://{HOST}{API}{path}", headers=bearer(), content="").status_code in (404, 405)
    assert not is_command(posted(method="GET"))
    assert is_command(posted(root_path="/below") | {"path": f"/below{API}{COMMANDS}"})


def test_commands_on_their_way_are_bounded_for_each_owner_and_free_again_afterwards() -> None:
    admission = AdmissionControl(token_book(), max_at_once=2)
    inside = [admission.enter(posted("agent")) for _ in range(2)]
    ((status, _, problem),) = answered(app_with(admission), posted("agent", SMALL))
    assert (status, problem["at_once"]) == (429, 2)
    assert admission.enter(posted("operator")) == "test-operator"
    admission.leave(inside[0])
    assert admission.enter(posted("agent")) == "test-agent"


def test_refusal_for_want_of_a_place_is_not_charged() -> None:
    admission = AdmissionControl(token_book(), RateLimit(per_s=1e-9, burst=2), max_at_once=1)
    owner = admission.enter(posted("agent"))
    answered(app_with(admission), *[posted("agent", SMALL)] * 5)
    admission.leave(owner)
    assert admission.enter(posted("agent")) == owner


def test_proxy_refuses_whom_it_knows_and_leaves_strangers_to_the_app() -> None:
    at_the_proxy = ProxyAdmission(_serve, drained(token_book(), "agent"))
    scopes = [posted("agent", SMALL), posted("operator", SMALL), posted(None, SMALL), posted("agent", path="/compare")]
    assert [status for status, _, _ in answered(at_the_proxy, *scopes)] == [429, 202, 202, 202]


def test_place_at_the_proxy_is_free_again_after_a_request_that_failed() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ConnectionError("the client has gone")

    admission = AdmissionControl(token_book(), max_at_once=1)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            answered(ProxyAdmission(fails, admission), posted("agent"))
    assert admission.enter(posted("agent")) == "test-agent"


def test_proxy_without_a_list_of_tokens_leaves_everything_to_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    monkeypatch.setattr(proxy, "lower_priority", lambda: None)
    assert proxy.middlewares() == []
    (tmp_path / "tokens.json").write_text(token_book().model_dump_json())
    (tmp_path / "tokens.json").chmod(0o600)
    (made,) = proxy.middlewares()
    ((status, _, _),) = answered(made.cls(_serve, *made.args, **made.kwargs), posted("agent", SMALL))
    assert status == 202


NICE = """
import os, threading
from control_plane.gateway.priority import THREADS, lower_priority
waiting = threading.Event()
threading.Thread(target=waiting.wait).start()
before = os.getpriority(os.PRIO_PROCESS, 0)
lower_priority(2)
threading.Thread(target=waiting.wait).start()
print(*{os.getpriority(os.PRIO_PROCESS, int(each.name)) for each in THREADS.iterdir()}, min(19, before + 2))
waiting.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
def test_gateway_gives_way_with_every_thread_it_has_and_will_have() -> None:
    done = subprocess.run([sys.executable, "-c", NICE], capture_output=True, text=True, check=True)
    every_thread, expected = done.stdout.split()
    assert every_thread == expected


def test_storm_of_one_token_leaves_another_half_of_the_queue(rig: Rig) -> None:
    for number in range(MAX_PENDING_OF_ONE - 1):
        rig.call(rig.server.submit, examples.command(number).model_copy(update={"author": "test-agent"}))
    evaluate = {"intent": {"kind": "evaluate"}}
    answers = [rig.post(COMMANDS, "agent", json=evaluate) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert answers[1].json()["limit"] == MAX_PENDING_OF_ONE
    assert "of test-agent" in answers[1].json()["detail"]
    assert rig.post(COMMANDS, "operator", json=evaluate).status_code == 202
