"""TokenLookup that expire, that are revoked, and that are for some runs only."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from control_plane.cli.main import app as steer
from control_plane.config import Role, Settings
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound
from control_plane.gateway import stream
from control_plane.gateway.auth import ACCESS
from control_plane.gateway.tokens import (
    Identity,
    TokenBook,
    TokenFile,
    TokenRecord,
    add_token,
    create_tokens,
    digest,
    revoke_token,
)
from tests.gateway.conftest import Rig
from tests.gateway.hostile.test_planted_files import soon
from tests.gateway.rig import API, HOST, RUN

OTHER = "other-run"


def record(name: str, role: Role = "operator", **more: Any) -> TokenRecord:
    return TokenRecord(id=name, role=role, sha256=digest(f"secret-of-{name}"), **more)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer secret-of-{name}"}


class Changing:
    """A list of tokens that a test may replace, as `TokenFile` does when its file has changed."""

    def __init__(self, book: TokenBook) -> None:
        self.book = book

    def identify(self, token: str) -> Identity | None:
        """By the list as it is now."""
        return self.book.identify(token)


@pytest.fixture
def scoped_house(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The gateway with tokens for this run, for another, for both, for none any more, and for all."""
    yesterday, tomorrow = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    book = TokenBook(
        tokens=(
            record("here", runs=("run-*",)),
            record("elsewhere", runs=("other-*",)),
            record("both", runs=("other-*", "run-1")),
            record("expired", expires_at=yesterday),
            record("lasting", expires_at=tomorrow),
        )
    )
    monkeypatch.setattr("tests.gateway.conftest.token_book", lambda: Changing(book))
    rig: Rig = request.getfixturevalue("rig")
    return rig


def cells() -> list[tuple[str, str]]:
    """Every route with a token, by method and path."""
    return [tuple(key.split(" ", 1)) for key in ACCESS]  # type: ignore[misc]


def ask(rig: Rig, method: str, path: str, name: str) -> int:
    address = path.format(run=RUN, uuid=uuid4(), sha256="a" * 64, source="web")
    params: dict[str, Any] = {"of": [RUN, f"{RUN}:main"]} if path.endswith("/compare") else {}
    params |= {"of": RUN} if path.endswith("/replay-check") else {}
    if method != "WEBSOCKET":
        return rig.web.request(method, address, headers=bearer(name), params=params).status_code
    with rig.web.websocket_connect(address, headers={"Host": HOST}) as web:
        web.send_text(json.dumps({"token": f"secret-of-{name}"}))
        try:
            return 200 if web.receive_json() else 0
        except WebSocketDisconnect as closed:
            return {4401: 401, 4403: 403, 4404: 404}[closed.code]


@pytest.mark.parametrize(("method", "path"), cells())
def test_every_route_by_every_sort_of_token(scoped_house: Rig, method: str, path: str) -> None:
    seen = {name: ask(scoped_house, method, path, name) for name in ("here", "elsewhere", "both", "expired", "lasting")}
    # A command that does not exist, and a body that is missing, are found out after the token and the run.
    found = (
        {404}
        if "{uuid}" in path or "{source}" in path
        else {422}
        if method in ("POST", "PUT")
        else {403}  # the run is of another owner
        if method == "DELETE"
        else {200, 404}
        if path.endswith("/logs")
        else {200}
    )
    for name in ("here", "both", "lasting"):
        assert seen[name] in found, (name, seen)
    assert seen["expired"] == 401
    about_a_run = "{run}" in path or path.endswith("/compare")
    missing = {422} if method == "POST" and "{source}" not in path else {404}
    assert seen["elsewhere"] in (missing if about_a_run else found)


def last_words(web: Any) -> WebSocketDisconnect:
    """How a stream ends, after whatever it still had to say."""
    for _ in range(100):
        try:
            web.receive_json()
        except WebSocketDisconnect as closed:
            return closed
    raise AssertionError("the stream goes on")


def test_what_is_out_of_scope_is_as_if_it_were_not_there(scoped_house: Rig) -> None:
    absent = scoped_house.web.get(f"{API}/runs/no-such-run", headers=bearer("both"))
    hidden = scoped_house.web.get(f"{API}/runs/{RUN}", headers=bearer("elsewhere"))
    assert absent.status_code == hidden.status_code == 404
    assert absent.json()["detail"].replace("no-such-run", RUN) == hidden.json()["detail"]
    assert scoped_house.web.get(f"{API}/runs", headers=bearer("elsewhere")).json() == {"runs": []}
    assert [run["run"] for run in scoped_house.web.get(f"{API}/runs", headers=bearer("here")).json()["runs"]] == [RUN]


def test_command_is_held_to_the_scope_of_its_token(scoped_house: Rig) -> None:
    body = {"intent": {"kind": "save_checkpoint"}}
    assert scoped_house.web.post(f"{API}/runs/{RUN}/commands", headers=bearer("here"), json=body).status_code == 202
    elsewhere = scoped_house.web.post(f"{API}/runs/{RUN}/commands", headers=bearer("elsewhere"), json=body)
    assert elsewhere.status_code == 404
    adopt = {"intent": {"kind": "adopt_checkpoint", "run": OTHER, "checkpoint": "step-1-g1"}}
    taken = scoped_house.web.post(f"{API}/runs/{RUN}/commands", headers=bearer("here"), json=adopt)
    assert (taken.status_code, f"no run '{OTHER}'" in taken.json()["detail"]) == (404, True)


def test_stream_ends_when_its_token_is_revoked(scoped_house: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PROGRESS_PERIOD_S", 0.2)
    with scoped_house.web.websocket_connect(f"{API}/runs/{RUN}/stream", headers={"Host": HOST}) as web:
        web.send_text(json.dumps({"token": "secret-of-here"}))
        assert web.receive_json()
        scoped_house.app.state.tokens.book = TokenBook()
        closed = last_words(web)
    assert (closed.code, "revoked" in closed.reason) == (4401, True)


def test_running_gateway_notices_a_new_list_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    create_tokens(where)
    tokens = TokenFile(where.tokens_file)
    ann = add_token(where, "ann", "viewer", ("gpt2-*",))
    found = tokens.identify(ann)
    assert found is not None
    assert (found.id, found.role, found.sees("gpt2-1"), found.sees("bert-1")) == ("ann", "viewer", True, False)
    good = where.tokens_file.read_text()
    where.tokens_file.write_text("{")
    assert tokens.identify(ann) == found
    where.tokens_file.write_text(good)
    assert tokens.identify(ann) == found
    assert not revoke_token(where, "ann")
    assert tokens.identify(ann) is None
    where.tokens_file.unlink()
    assert tokens.identify(where.token_file("operator").read_text().strip()) is None


def test_slow_reader_gets_nothing_more_when_its_token_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def slowly(_: Any, message: Any) -> int:
        sent.append(message)
        return 1

    class Long:
        """A run with more entries than a reader has taken."""

        async def tail(self, after: int, limit: int, wait_s: float) -> list[Any]:
            return [SimpleNamespace(seq=after + each, record=None, line=dict) for each in range(1, limit + 1)]

        async def snapshot(self) -> Any:
            return SimpleNamespace(closed=False, seq=10**6)

    def check() -> None:
        if len(sent) >= 3:
            raise stream.CloseStream(stream.UNAUTHENTICATED, "revoked")

    monkeypatch.setattr(stream, "_send", slowly)
    handle: Any = Long()
    websocket: Any = None
    with pytest.raises(stream.CloseStream, match="revoked"):
        asyncio.run(stream._send_all(websocket, handle, 0, check))
    assert len(sent) == 3


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_list_that_others_have_access_to_lets_nobody_new_in(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    where = Settings(home=tmp_path)
    create_tokens(where)
    ann = add_token(where, "ann", "viewer")
    tokens = TokenFile(where.tokens_file)
    before = tokens.identify(ann)
    changed = where.tokens_file.read_text().replace('"viewer"', '"admin"')
    where.tokens_file.write_text(changed)
    where.tokens_file.chmod(mode)
    assert tokens.identify(ann) == before
    assert f"{mode:04o}" in caplog.text
    with pytest.raises(Damaged, match="chmod 600"):
        TokenFile(where.tokens_file)
    where.tokens_file.chmod(0o600)
    found = tokens.identify(ann)
    assert found is not None
    assert found.role == "admin"


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("elsewhere.json"), os.mkdir])
def test_list_that_is_no_file_is_not_waited_for(tmp_path: Path, plant: Any) -> None:
    where = Settings(home=tmp_path)
    ann = add_token(where, "ann", "viewer")
    tokens = TokenFile(where.tokens_file)
    where.tokens_file.rename(tmp_path / "elsewhere.json")
    plant(where.tokens_file)
    found = soon(lambda: tokens.identify(ann))
    assert found is not None
    assert found.id == "ann"


def test_token_ends_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    book = TokenBook(tokens=(record("short", expires_at=now + timedelta(seconds=10)),))
    assert book.identify("secret-of-short") is not None
    monkeypatch.setattr(time, "time", lambda: now.timestamp() + 11)
    assert book.identify("secret-of-short") is None


def test_local_token_that_is_revoked_is_replaced(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    create_tokens(where)
    before = where.token_file("operator").read_text().strip()
    assert revoke_token(where, "local-operator")
    after = where.token_file("operator").read_text().strip()
    book = TokenBook.from_file(where.tokens_file)
    assert after != before
    assert book.identify(before) is None
    assert book.identify(after) is not None


@pytest.mark.parametrize("name", ["", "local-ann", "../ann", "ann\n", "a" * 65, "-ann", "ann bell"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="is not a valid token name"):
        add_token(Settings(home=tmp_path), name, "viewer")


def test_tokens_are_made_once_and_by_one_at_a_time(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    token = add_token(where, "ann", "viewer")
    assert token not in where.tokens_file.read_text()
    assert where.tokens_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Conflict, match="steer token revoke ann"):
        add_token(where, "ann", "viewer")
    with pytest.raises(NotFound):
        revoke_token(where, "bob")
    with pytest.raises(Invalid, match="in the past"):
        add_token(where, "bob", "viewer", expires_at=datetime.now(UTC) - timedelta(seconds=1))


def test_command_line_makes_lists_and_revokes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    run = CliRunner().invoke
    made = run(steer, ["token", "create", "ann", "--role", "agent", "--runs", "gpt2-*", "--expires", "12h"])
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert TokenFile(tmp_path / "tokens.json").identify(token) is not None
    listed = run(steer, ["token", "list"]).stdout
    assert "ann   agent  gpt2-*" in listed
    assert token not in listed
    assert run(steer, ["token", "create", "bob", "--role", "agent", "--expires", "soon"]).exit_code == 2
    assert run(steer, ["token", "revoke", "ann"]).exit_code == 0
    assert run(steer, ["token", "revoke", "ann"]).exit_code == 3
    assert os.listdir(tmp_path) == ["tokens.json"]


def test_token_for_no_run_is_listed_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    told = TokenBook(tokens=(record("nobody", runs=()), record("somebody")))
    (tmp_path / "tokens.json").write_text(told.text())
    listed = CliRunner().invoke(steer, ["token", "list"])
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert "for no run" in rows["nobody"]
    assert "all" in rows["somebody"]
    assert "remove 'runs' for all runs" in listed.stderr
