"""Who may do what: every route, method and role from one table, and nothing beside it."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI, WebSocket
from starlette.websockets import WebSocketDisconnect

from control_plane.config import ROLES, Role
from control_plane.gateway.auth import ACCESS, PUBLIC
from tests.core.examples import EVERY_INTENT
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, HOST, RUN, TOKENS, bearer

EVERYBODY = "viewer operator agent admin"
TABLE = {
    f"GET {API}/health": f"nobody {EVERYBODY}",
    f"GET {API}/openapi.json": EVERYBODY,
    f"GET {API}/runs": EVERYBODY,
    f"GET {API}/runs/{{run}}": EVERYBODY,
    f"POST {API}/runs/{{run}}/commands": "operator agent admin",
    f"POST {API}/runs": "operator admin",
    f"POST {API}/runs/{{run}}/resume": "operator admin",
    f"POST {API}/runs/{{run}}/fork": "operator admin",
    f"POST {API}/runs/{{run}}/replay": "operator admin",
    f"GET {API}/runs/{{run}}/job": EVERYBODY,
    f"DELETE {API}/runs/{{run}}": "operator admin",
    f"GET {API}/queue": EVERYBODY,
    f"GET {API}/usage": EVERYBODY,
    f"GET {API}/runs/{{run}}/commands/{{uuid}}": EVERYBODY,
    f"GET {API}/runs/{{run}}/journal": EVERYBODY,
    f"GET {API}/runs/{{run}}/metrics": EVERYBODY,
    f"GET {API}/runs/{{run}}/logs": EVERYBODY,
    f"GET {API}/runs/{{run}}/tree": EVERYBODY,
    f"GET {API}/runs/{{run}}/replay-check": EVERYBODY,
    f"GET {API}/runs/{{run}}/alerts": EVERYBODY,
    f"GET {API}/runs/{{run}}/agent": EVERYBODY,
    f"GET {API}/runs/{{run}}/data": EVERYBODY,
    f"POST {API}/runs/{{run}}/data/{{source}}": "operator admin",
    f"GET {API}/compare": EVERYBODY,
    f"GET {API}/bundles/{{sha256}}": "operator admin",
    f"PUT {API}/bundles/{{sha256}}": "operator admin",
    f"GET {API}/cluster": EVERYBODY,
    f"GET {API}/cluster/checks": "operator admin",
    f"WEBSOCKET {API}/runs/{{run}}/stream": EVERYBODY,
}


def routes_of(app: FastAPI) -> set[str]:
    """Every route and method of the app, as the table names them."""
    return {
        f"{method} {route.path}"  # type: ignore[attr-defined]
        for route in app.routes
        for method in (getattr(route, "methods", None) or {"WEBSOCKET"})
    }


def test_table_names_every_route_and_no_other(rig: Rig) -> None:
    assert routes_of(rig.app) == set(TABLE) == set(ACCESS) | PUBLIC


@pytest.mark.parametrize("role", ["nobody", *ROLES])
@pytest.mark.parametrize("key", [key for key in TABLE if not key.startswith("WEBSOCKET")])
def test_route_is_open_to_the_roles_of_the_table_only(rig: Rig, key: str, role: Any) -> None:
    method, _, path = key.partition(" ")
    address = path.format(run=RUN, uuid=uuid4(), sha256="a" * 64, source="web")
    headers = {} if role == "nobody" else bearer(role)
    answer = rig.web.request(method, address, headers=headers)
    open_to = TABLE[key].split()
    if method == "DELETE" and role in open_to:
        # The run is active, and of another owner than the operator.
        assert (answer.status_code, RUN in answer.json()["detail"]) == (409 if role == "admin" else 403, True)
    elif role in open_to:
        assert answer.status_code in (200, 404, 422)
    else:
        assert answer.status_code == (401 if role == "nobody" else 403)
        assert answer.json()["type"] == ("/problems/not-allowed")


def test_route_that_is_planted_is_open_to_nobody(rig: Rig) -> None:
    async def leak() -> str:
        return "leaked"

    rig.app.add_api_route(f"{API}/planted", leak)
    assert routes_of(rig.app) - set(TABLE) == {f"GET {API}/planted"}
    for role in ROLES:
        answer = rig.get("/planted", role)
        assert (answer.status_code, "leaked" in answer.text) == (403, False)
    assert rig.web.get(f"{API}/planted").status_code == 401


def test_second_method_that_is_planted_on_a_route_is_open_to_nobody(rig: Rig) -> None:
    async def wipe() -> str:
        return "wiped"

    rig.app.add_api_route(f"{API}/runs", wipe, methods=["DELETE"])
    assert rig.web.delete(f"{API}/runs", headers=bearer("admin")).status_code == 403


def test_websocket_that_is_planted_is_open_to_nobody(rig: Rig) -> None:
    async def leak(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("leaked")

    rig.app.add_api_websocket_route(f"{API}/planted", leak)
    with pytest.raises(WebSocketDisconnect) as closed, rig.web.websocket_connect(f"ws://{HOST}{API}/planted"):
        raise AssertionError("it was accepted")
    assert (closed.value.code, closed.value.reason) == (4403, "this route is closed")


OF_AN_AGENT = (
    "set_learning_rate",
    "set_knobs",
    "set_schedule",
    "save_checkpoint",
    "evaluate",
    "propose",
    "withdraw_proposal",
    "note_effect",
)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("intent", EVERY_INTENT, ids=lambda intent: intent["kind"])
def test_command_is_open_to_the_roles_that_may_give_it(rig: Rig, intent: dict[str, Any], role: Role) -> None:
    answer = rig.post(f"/runs/{RUN}/commands", role, json={"intent": intent})
    tunes = intent["kind"] in OF_AN_AGENT
    allowed = role in ("operator", "admin") or (role == "agent" and tunes)
    # Which actions an agent may run, and which weights it may set, is for the run to say; this one says nothing of any.
    is_for_the_run = role == "agent" and intent["kind"] in ("run_action", "set_mixture")
    assert (answer.status_code != 403) == (allowed or is_for_the_run)
    of_nothing = (
        "resume",
        "cancel",
        "pin_checkpoint",
        "delete_checkpoint",
        "rollback",
        "adopt_checkpoint",
        "acknowledge_alert",
        "snooze_alert",
        "stop_agent",
        "withdraw_proposal",
        "answer_proposal",
        "note_effect",
    )
    assert (answer.status_code == 202) == (allowed and intent["kind"] not in of_nothing)


@pytest.mark.parametrize("role", ROLES)
def test_rollback_is_for_people_who_steer(rig: Rig, role: Role) -> None:
    intent = {"kind": "rollback", "checkpoint": "step-2-g1"}
    answer = rig.post(f"/runs/{RUN}/commands", role, json={"intent": intent})
    assert answer.status_code == (404 if role in ("operator", "admin") else 403), "there is no such checkpoint"


CREDENTIALS = {
    "none": {},
    "unknown": {"Authorization": "Bearer nobody-knows-me"},
    "empty": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": f"Basic {TOKENS['admin']}"},
    "the digest itself": {"Authorization": "Bearer 8a"},
    "a cookie": {"Cookie": f"token={TOKENS['admin']}"},
    "too long": {"Authorization": "Bearer " + "x" * 5000},
    "not ASCII": {"Authorization": b"Bearer \xff\xfe"},
}


@pytest.mark.parametrize("headers", CREDENTIALS.values(), ids=CREDENTIALS.keys())
def test_credentials_that_are_none_are_answered_401(rig: Rig, headers: Any) -> None:
    answer = rig.web.get(f"{API}/runs?token={TOKENS['admin']}", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="steerway"')


def test_body_of_a_stranger_is_not_parsed(rig: Rig) -> None:
    answer = rig.web.post(f"{API}/runs/{RUN}/commands", content="{broken", headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_tokens_appear_in_no_answer_journal_or_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    said = []
    for role, token in TOKENS.items():
        said += [rig.get(f"/{path}", role).text for path in ("runs", f"runs/{RUN}", f"runs/{RUN}/journal", "nothing")]
        said += [rig.post(f"/runs/{RUN}/commands", role, json={"intent": {"kind": "pause"}, "token": token}).text]
        said += [rig.post(f"/runs/{RUN}/commands", role, json={"intent": {"kind": "evaluate"}}).text]
        said += [rig.web.get(f"{API}/runs", headers={"Authorization": f"Bearer {token}x"}).text]
    said += [path.read_text() for path in rig.runs.files(RUN).journal.iterdir()]
    said += [record.getMessage() for record in caplog.records if record.name.startswith("control_plane")]
    assert not [text for text in said if "canary" in text]
