"""Whatever is asked, by whomever: no 5xx, nothing unhandled, no token in an answer, and every refusal is a problem."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response

from control_plane.gateway import app as front
from control_plane.gateway.auth import ACCESS, PREFIX, READERS
from tests.gateway.hostile.fuzzing import fuzz

REQUESTS, MANY_REQUESTS = 400, 20_000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that never end are not waited for long."""
    monkeypatch.setattr(front, "BODY_DEADLINE_S", 0.02)


def test_no_request_of_a_few_hundred_ends_badly(tmp_path: Path) -> None:
    statuses, faults = asyncio.run(fuzz(tmp_path, seed=1, requests=REQUESTS))
    assert not faults, "\n".join(faults[:10])
    assert statuses.keys() >= {200, 202, 401, 403, 404, 405, 413, 422}
    assert sum(statuses.values()) == REQUESTS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_many_ends_badly(tmp_path: Path) -> None:
    begun, seed = time.monotonic(), 20_261_128
    statuses, faults = asyncio.run(fuzz(tmp_path, seed=seed, requests=MANY_REQUESTS))
    print(
        f"seed {seed}, {MANY_REQUESTS} requests in {time.monotonic() - begun:.0f} s:", sorted(statuses.items(), key=str)
    )
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults[:10])


async def raises() -> Response:
    """Fails in a way that nobody foresaw."""
    return Response(str(1 // 0))


async def unavailable() -> Response:
    """Answers 503."""
    return Response("{}", 503)


async def repeats(request: Request) -> Response:
    """Shows the token that it was asked with."""
    return Response(request.headers["authorization"])


async def refuses_in_prose() -> Response:
    """Refuses without a problem."""
    return Response("no", 409)


PLANTED: dict[Callable[..., object], str] = {
    raises: "ZeroDivisionError",
    unavailable: "503",
    repeats: "a token is repeated",
    refuses_in_prose: "no problem+json",
}


@pytest.mark.parametrize("endpoint", PLANTED)
def test_planted_route_is_found(
    tmp_path: Path, endpoint: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(app: FastAPI) -> None:
        app.router.add_api_route(f"{PREFIX}/planted", endpoint, methods=["GET"])

    monkeypatch.setitem(ACCESS, f"GET {PREFIX}/planted", READERS)
    _, faults = asyncio.run(fuzz(tmp_path, seed=2, requests=600, plant=plant))
    assert faults
    assert all(PLANTED[endpoint] in fault for fault in faults), faults[:3]
