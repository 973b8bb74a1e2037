"""Random requests put to the gateway in process, and what is wrong with an answer."""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI

from control_plane.gateway.admission import AdmissionControl
from control_plane.gateway.app import create_app
from control_plane.gateway.problems import MEDIA_TYPE
from control_plane.gateway.queueing.housekeeping import Housekeeping
from control_plane.gateway.rate_limit import RateLimit
from control_plane.storage.layout import RunFiles
from tests.gateway.fake_cluster import FakeCluster
from tests.gateway.hostile.fuzz_requests import Asked, Grammar
from tests.gateway.queueing.surroundings import Surroundings
from tests.gateway.rig import HOST, ORIGIN, RUN, Launches, Runs, open_server, start_trainers, token_book

CANARY = b"canary-"
"""Every token begins like this, also the wrong ones, and nothing else does: an answer that holds it repeats a token."""

SEASON = 250
"""So many requests of one run; then its queue is full, or it is stopped, and another begins."""

DEADLINE_S = 30.0


@dataclass
class Answer:
    """What came back. Without a status: nothing."""

    status: int | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class Errors(logging.Handler):
    """What was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.told.append(f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


def wrong(asked: Asked, answer: Answer, errors: list[str]) -> str | None:
    """What is wrong with this answer."""
    if errors:
        return f"unhandled: {errors[0][:300]}"
    if answer.status is None:
        return None if asked.ends is None else "no answer"
    if answer.status >= 500:
        return f"{answer.status}: {answer.body[:300]!r}"
    if CANARY in answer.body or any(CANARY in value for value in answer.headers.values()):
        return "a token is repeated"
    if answer.status < 300:
        return None
    try:
        said = json.loads(answer.body)
    except ValueError:
        said = None
    is_problem = isinstance(said, dict) and said.keys() >= {"type", "title", "status", "detail"}
    if answer.headers.get(b"content-type") != MEDIA_TYPE.encode() or not is_problem or said["status"] != answer.status:
        return f"{answer.status}, and no problem+json: {answer.headers.get(b'content-type')!r} {answer.body[:200]!r}"
    return None


async def ask(app: FastAPI, asked: Asked) -> Answer:
    """Ask as a server would that hands everything on. Raises what the app does, and `TimeoutError`."""
    answer, pieces = Answer(), list(asked.pieces)

    async def receive() -> dict[str, Any]:
        if asked.ends is None and len(pieces) < 2:
            return {"type": "http.disconnect"}
        if not pieces:
            await asyncio.Event().wait()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or asked.ends is not True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], dict(message["headers"])
        else:
            answer.body += message.get("body", b"")

    raw = asked.path.encode()
    scope = {
        "type": "http", "http_version": "1.1", "method": asked.method, "scheme": "http", "root_path": "",
        "path": unquote_to_bytes(raw).decode("utf-8", "replace"), "raw_path": raw, "query_string": asked.query.encode(),
        "headers": asked.headers, "server": (HOST, 80), "client": ("10.0.0.9", 9), "extensions": {},
    }  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        await app(scope, receive, send)
    return answer


async def fuzz(
    root: Path, seed: int, requests: int, plant: Callable[[FastAPI], None] = lambda app: None
) -> tuple[Counter[int | None], list[str]]:
    """So many requests: how often which status came, and what was wrong. `plant` may put a fault into the app."""
    runs = Runs(root)
    admission = AdmissionControl(token_book(), RateLimit(per_s=1e9, burst=10**9))
    launches = Launches()
    app = create_app(
        runs,
        token_book(),
        allowed_hosts=[HOST],
        allowed_origins=[ORIGIN],
        admission=admission,
        launches=launches,
        jobs=launches,
        cluster=FakeCluster(),
        housekeeping=Housekeeping(root, Surroundings(runs)),
    )
    plant(app)
    templates = [(route.path, sorted(getattr(route, "methods", None) or {"GET"})) for route in app.routes]  # type: ignore[attr-defined]
    command = [each for each in templates if "POST" in each[1]]
    grammar = Grammar(
        random.Random(seed), [*templates, *command * len(templates), ("/", ["GET"]), ("/api/v1", ["GET"])]
    )
    errors, statuses, faults = Errors(), Counter[int | None](), list[str]()
    logging.getLogger().addHandler(errors)
    try:
        for number in range(requests):
            if number % SEASON == 0:
                await _begin(runs, root / f"season-{number}")
            asked = grammar.request()
            try:
                answer = await ask(app, asked)
            except Exception as error:
                answer = Answer()
                errors.told.append(f"the app raised {error!r}")
            statuses[answer.status] += 1
            if (fault := wrong(asked, answer, errors.told)) is not None:
                faults.append(f"seed {seed}, request {number}: {fault}\n    {asked}")
            errors.told.clear()
    finally:
        logging.getLogger().removeHandler(errors)
    return statuses, faults


async def _begin(runs: Runs, root: Path) -> None:
    """A new run of the same name, with two logs."""
    runs.root, files = root, RunFiles(root / RUN)
    runs.handles[RUN] = server = open_server(files)
    files.logs.mkdir()
    (files.logs / "driver.log").write_bytes(b"first\nsecond \xff\n" * 100)
    (files.logs / "evil.log").symlink_to("driver.log")
    await start_trainers(server)
