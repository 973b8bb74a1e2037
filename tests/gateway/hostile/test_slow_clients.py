"""Clients that take their time: what they may hold, and for how long."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.core.model.records import Entry
from control_plane.gateway import app as front
from control_plane.gateway import stream
from control_plane.gateway.app import create_app
from control_plane.storage.layout import RunFiles
from tests.core import examples
from tests.gateway.rig import API, HOST, RUN, TOKENS, Runs, bearer, open_server, start_trainers, token_book


class CountedTail:
    """A run's handle that counts how many entries were asked of it."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.taken = handle, 0

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """Entries after a position."""
        entries: tuple[Entry, ...] = await self.handle.tail(after_seq, limit, wait_s)
        self.taken += len(entries)
        return entries


def scope(kind: str, path: str, **changes: Any) -> dict[str, Any]:
    """A connection as an ASGI server announces it."""
    headers = [(b"host", HOST.encode()), (b"authorization", bearer()["Authorization"].encode())]
    found = {
        "type": kind,
        "path": API + path,
        "raw_path": (API + path).encode(),
        "query_string": b"",
        "headers": headers,
    }
    return found | {"scheme": "http", "root_path": "", "server": (HOST, 80), "client": ("10.0.0.9", 9)} | changes


def test_reader_that_stops_reading_holds_one_batch_and_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SEND_DEADLINE_S", 0.1)
    monkeypatch.setattr(stream, "BATCH_ENTRIES", 10)
    runs, sent = Runs(tmp_path), list[dict[str, Any]]()
    first = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": json.dumps({"token": TOKENS["viewer"]})},
    ]

    async def receive() -> dict[str, Any]:
        return first.pop(0) if first else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.send":
            await asyncio.Event().wait()

    async def watch() -> int:
        server = open_server(RunFiles(tmp_path / RUN))
        await start_trainers(server)
        for number in range(60):
            await server.submit(examples.command(number))
        counted = CountedTail(server)
        runs.handles[RUN] = counted  # type: ignore[assignment]
        app = create_app(runs, token_book(), allowed_hosts=[HOST], allowed_origins=[])
        await app(scope("websocket", f"/runs/{RUN}/stream", scheme="ws", subprotocols=[]), receive, send)
        return counted.taken

    assert asyncio.run(watch()) == 10
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[-1]["code"] == 1013


def test_body_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "BODY_DEADLINE_S", 0.1)
    sent = list[dict[str, Any]]()
    parts = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(Runs(tmp_path), token_book(), allowed_hosts=[HOST], allowed_origins=[])
    asyncio.run(app(scope("http", f"/runs/{RUN}/commands", method="POST", http_version="1.1"), receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["type"] == "/problems/too-slow"


def test_long_polls_of_one_token_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MAX_LONG_POLLS_PER_TOKEN", 2)

    async def poll() -> list[int]:
        runs = Runs(tmp_path)
        runs.handles[RUN] = server = open_server(RunFiles(tmp_path / RUN))
        app = create_app(runs, token_book(), allowed_hosts=[HOST], allowed_origins=[])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}{API}") as web:
            path = f"/runs/{RUN}/journal?after=2&wait_s=20"
            polls = [asyncio.create_task(web.get(path, headers=bearer())) for _ in range(3)]
            (refused,), held = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
            other = await web.get(f"/runs/{RUN}/journal?after=0&wait_s=20", headers=bearer("viewer"))
            await server.submit(examples.command(1))
            answered = await asyncio.gather(*held)
            again = await web.get(f"/runs/{RUN}/journal?after=0&wait_s=20", headers=bearer())
            return [answer.status_code for answer in (refused.result(), other, *answered, again)]

    assert asyncio.run(poll()) == [429, 200, 200, 200, 200]
