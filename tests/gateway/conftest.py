"""Fixtures: the app in process, and on a socket."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from control_plane.config import Role
from control_plane.gateway.app import create_app
from control_plane.gateway.queueing.housekeeping import Housekeeping
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from tests.gateway.fake_cluster import FakeCluster
from tests.gateway.queueing.surroundings import Surroundings
from tests.gateway.rig import (
    API,
    HOST,
    ORIGIN,
    RUN,
    Launches,
    LiveGateway,
    Runs,
    bearer,
    live_gateway,
    open_server,
    start_trainers,
    token_book,
    uploads_in,
)


@dataclass
class Rig:
    """The app in process, with one run whose trainers have started."""

    app: FastAPI
    web: TestClient
    runs: Runs
    server: ControlServer
    launches: Launches

    def call(self, work: Any, *args: Any) -> Any:
        """Run a coroutine function where the control server lives."""
        assert self.web.portal is not None
        return self.web.portal.call(work, *args)

    def get(self, path: str, role: Role = "operator", **options: Any) -> Any:
        """GET below the API."""
        return self.web.get(API + path, headers=bearer(role), **options)

    def post(self, path: str, role: Role = "operator", headers: dict[str, str] | None = None, **options: Any) -> Any:
        """POST below the API."""
        return self.web.post(API + path, headers=bearer(role) | (headers or {}), **options)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """The app in process."""
    runs, launches = Runs(tmp_path), Launches()
    app = create_app(
        runs,
        token_book(),
        allowed_hosts=[HOST, "::1"],
        allowed_origins=[ORIGIN],
        launches=launches,
        jobs=launches,
        uploads=uploads_in(tmp_path),
        cluster=FakeCluster(),
        housekeeping=Housekeeping(tmp_path, Surroundings(runs)),
    )
    with TestClient(app, base_url=f"http://{HOST}:8700") as web:
        server = open_server(RunFiles(tmp_path / RUN))
        runs.handles[RUN] = server
        found = Rig(app, web, runs, server, launches)
        found.call(start_trainers, server)
        yield found


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    """The app on a real socket."""
    with live_gateway(tmp_path) as gateway:
        yield gateway
