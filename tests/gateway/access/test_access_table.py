"""Every route of the app, with every method and every sort of credential: what each cell must answer, and does."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from starlette.websockets import WebSocketDisconnect

from control_plane.config import ROLES
from control_plane.gateway import stream
from control_plane.gateway.auth import PUBLIC
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from tests.gateway.access.test_access import TABLE
from tests.gateway.conftest import Rig
from tests.gateway.rig import HOST, RUN, token_book
from tests.gateway.rig import TOKENS as OF_ROLES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
OTHERS = ("expired", "revoked", "elsewhere", "here")
TOKENS: dict[str, str] = dict(OF_ROLES) | {name: f"canary-{name}" for name in OTHERS}
HEADERS: dict[str, dict[str, str]] = {
    "none": {},
    "unknown": {"Authorization": "Bearer nobody-knows-me"},
    "empty": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": f"Basic {TOKENS['admin']}"},
} | {name: {"Authorization": f"Bearer {token}"} for name, token in TOKENS.items()}
FIRST_MESSAGES = {"none": "{}", "unknown": '{"token": "nobody"}', "empty": '{"token": ""}', "another scheme": "hello"}
NOBODY = {"none", "unknown", "empty", "another scheme", "expired", "revoked"}
OF_NO_KIND = {"here": "admin", "elsewhere": "admin"}


def book() -> TokenBook:
    """A token per role; one that has expired; two for some runs only. The revoked one is in no list."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    more = (
        TokenRecord(id="expired", role="admin", sha256=digest(TOKENS["expired"]), expires_at=past),
        TokenRecord(id="elsewhere", role="admin", sha256=digest(TOKENS["elsewhere"]), runs=("other-*",)),
        TokenRecord(id="here", role="admin", sha256=digest(TOKENS["here"]), runs=(RUN,)),
    )
    return TokenBook(tokens=(*token_book().tokens, *more))


@pytest.fixture
def tabled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The gateway with every sort of token."""
    monkeypatch.setattr("tests.gateway.conftest.token_book", book)
    rig: Rig = request.getfixturevalue("rig")
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    (logs / "driver.log").write_text("one line\n")
    return rig


def body_of(path: str) -> dict[str, Any]:
    """A body that the route of this path takes."""
    bodies = {"/runs": {"config": "x"}, "/fork": {"checkpoint": "step-2-g1"}, "/resume": {}, "/replay": {}}
    known = next((body for end, body in bodies.items() if path.endswith(end)), {"intent": {"kind": "evaluate"}})
    return known | {"uuid": str(uuid4())}


def right(methods: set[str], method: str, path: str, who: str) -> int:
    """The status that this cell must have."""
    if method == "POST" and who in NOBODY:
        # It has a body, and a stranger's body is not waited for, wherever it is sent.
        return 401
    if method not in methods:
        return 405
    key = f"{method} {path}"
    if key in PUBLIC:
        return 200
    if who in NOBODY:
        return 401
    if OF_NO_KIND.get(who, who) not in TABLE[key].split():
        return 403
    if who == "elsewhere" and ("{run}" in path or path.endswith("/compare")):
        return 404
    if method == "PUT":
        return 422  # no body
    if method == "DELETE":
        # The run is active, and of another owner than the operator.
        return 403 if OF_NO_KIND.get(who, who) == "operator" else 409
    # No command has this uuid, and the run has no sources.
    return 404 if "{uuid}" in path or "{source}" in path else 202 if method == "POST" else 200


def test_every_cell_of_the_table(tabled: Rig) -> None:
    wrong, cells = list[Any](), 0
    routes = [route for route in tabled.app.routes if getattr(route, "methods", None)]
    methods: dict[str, set[str]] = {}
    for route in routes:
        methods.setdefault(route.path, set()).update(route.methods)  # type: ignore[attr-defined]
    for path in methods:
        address = path.format(run=RUN, uuid=uuid4(), sha256="a" * 64, source="web")
        for method in METHODS:
            for who, headers in HEADERS.items():
                options: dict[str, Any] = {"params": {"of": [RUN, f"{RUN}:main"]}} if "compare" in address else {}
                options |= {"params": {"of": RUN}} if address.endswith("/replay-check") else {}
                if method == "POST":
                    options["json"] = body_of(path)
                answer = tabled.web.request(method, address, headers=headers, **options)
                must = right(methods[path], method, path, who)
                cells += 1
                if answer.status_code != must or "canary-" in answer.text:
                    wrong.append((method, path, who, answer.status_code, must))
    print(f"{cells} cells of {len(methods)} paths, {len(wrong)} wrong")
    assert cells == len(methods) * len(METHODS) * len(HEADERS)
    assert not wrong, wrong[:20]


def streamed(rig: Rig, path: str, first: str) -> int:
    """What a stream ends with, or 1000 if it shows the run."""
    with rig.web.websocket_connect(path, headers={"Host": HOST}) as web:
        web.send_text(first)
        try:
            web.receive_json()
        except WebSocketDisconnect as closed:
            return closed.code
        return stream.OVER


def test_every_cell_of_the_streams(tabled: Rig) -> None:
    wrong, cells = list[Any](), 0
    for path in (key.split(" ", 1)[1] for key in TABLE if key.startswith("WEBSOCKET")):
        for who in HEADERS:
            first = FIRST_MESSAGES.get(who) or json.dumps({"token": TOKENS[who]})
            must = stream.UNAUTHENTICATED if who in NOBODY else stream.NO_RUN if who == "elsewhere" else stream.OVER
            seen = streamed(tabled, path.format(run=RUN), first)
            cells += 1
            if seen != must:
                wrong.append((path, who, seen, must))
    print(f"{cells} cells of streams, {len(wrong)} wrong")
    assert cells == len(HEADERS) == 4 + len(ROLES) + len(OTHERS)
    assert not wrong, wrong
