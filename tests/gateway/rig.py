"""A gateway over real control servers, for the tests of this folder."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import uvicorn

from control_plane.api.launching import (
    AnyLaunchRequest,
    ForkRequest,
    JobView,
    Launched,
    LaunchedRun,
    LaunchRequest,
    ReplayRequest,
    Requester,
    ResumeRequest,
)
from control_plane.api.messages import Measurements, MetricSummary, Point, Progress, Report, RunSummary, StepRange
from control_plane.api.ports import OperatorPort
from control_plane.config import Role, Settings
from control_plane.core.model.errors import NotFound
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import CommandSettled
from control_plane.gateway.app import create_app
from control_plane.gateway.data.announcer import ShardAnnouncer
from control_plane.gateway.queueing.housekeeping import Housekeeping
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.transfer import adopt
from control_plane.storage.code.uploads import BundleUploads
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles, check_run_id
from tests.core import examples
from tests.gateway.fake_cluster import FakeCluster
from tests.gateway.queueing.surroundings import Surroundings
from tests.storage.plain_results import results_of

RUN = "run-1"
API = "/api/v1"
HOST = "gateway.test"
ORIGIN = "http://127.0.0.1:8701"
TOKENS: dict[Role, str] = {
    "viewer": "canary-viewer-3f9a",
    "operator": "canary-operator-71bc",
    "agent": "canary-agent-c04d",
    "admin": "canary-admin-99e2",
}
KNOBS = examples.KNOBS | {"weight_decay": [0.1, 0.0], "betas": [[0.9, 0.999]] * 2, "eval_steps": 50}
KNOB_FACTS = {
    "weight_decay": {"per_group": True, "kind": "number", "least": 0.0, "most": 1.0, "description": "of the optimizer"},
    "betas": {"per_group": True, "kind": "numbers", "least": 0.0, "most": 1.0},
    "eval_steps": {"per_group": False, "kind": "integer", "least": 1},
}
Answer = TypeVar("Answer")


def token_book() -> TokenBook:
    """One token per role."""
    return TokenBook(
        tokens=tuple(TokenRecord(id=f"test-{role}", role=role, sha256=digest(token)) for role, token in TOKENS.items())
    )


def bearer(role: Role = "operator") -> dict[str, str]:
    """The header with this role's token."""
    return {"Authorization": f"Bearer {TOKENS[role]}"}


@dataclass
class PointList:
    """Measurements in memory. Satisfies `server.MeasurementStore`."""

    points: list[Point] = field(default_factory=list)

    def add(self, points: Sequence[Point]) -> None:
        """Keep these points."""
        self.points += points

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Points after a cursor."""
        found = [point for point in self.points[after:] if not names or point.name in names]
        return Measurements(points=tuple(found[:limit]), cursor=len(self.points))

    def latest(self) -> dict[str, float]:
        """The newest value of each name."""
        return {point.name: point.value for point in self.points}

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """What these metrics came to on each stretch."""
        return results_of(self.points, stretches, names)


@dataclass
class Runs:
    """Control servers by run. Satisfies `gateway.app.RunDirectory`."""

    root: Path
    handles: dict[str, OperatorPort] = field(default_factory=dict)
    launched: dict[str, JobView] = field(default_factory=dict)

    async def list(self) -> Sequence[RunSummary]:
        """Every run."""
        return [RunSummary.of(await handle.snapshot()) for handle in self.handles.values()]

    async def handle(self, run: str) -> OperatorPort:
        """The run's control server."""
        if check_run_id(run) not in self.handles:
            raise NotFound(f"there is no run {run!r}")
        return self.handles[run]

    def files(self, run: str) -> RunFiles:
        """The run's files."""
        if check_run_id(run) not in self.handles and run not in self.launched:
            raise NotFound(f"there is no run {run!r}")
        return RunFiles(self.root / run)


def open_server(files: RunFiles, limits: dict[str, Limit] | None = None) -> ControlServer:
    """A control server over a real journal, whose trainers have not started."""
    files.root.mkdir(parents=True, exist_ok=True)
    created = examples.created(files.run).model_copy(update={"limits": limits or {}})
    return ControlServer(
        created,
        Journal.open(files.journal),
        PointList(),
        adopt=partial(adopt, files),
    )


async def start_trainers(server: ControlServer) -> None:
    """Two ranks at step 3, with a loss that has diverged."""
    await server.start_generation(examples.start(knobs=KNOBS, facts={"model": "tiny", "knobs": KNOB_FACTS}))
    points = (Point(step=3, name="loss", value=2.5, time_s=1.0), Point(step=3, name="lr", value=1e-3, time_s=1.0))
    diverged = Point(step=4, name="loss", value=float("nan"), time_s=2.0)
    progress = Progress(step=4, total_steps=100, steps_per_s=2.0)
    await server.report(Report(generation=1, points=(*points, diverged), progress=progress))


async def settle(server: ControlServer, uuid: UUID, step: int = 10, after: dict[str, Any] | None = None) -> None:
    """Rank 0 reports that every rank applied this command."""
    outcome = CommandSettled(
        uuid=uuid, status="applied", step=step, generation=1, before={}, after=after or {}, world_size=2
    )
    await server.report(Report(generation=1, outcomes=(outcome,)))


class DeadHandle:
    """A control server that is away, or broken."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def snapshot(self) -> None:
        """Raises."""
        raise self.error

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> None:
        """Raises."""
        raise self.error


@dataclass
class Launches:
    """A launch port that remembers what it was asked, and starts nothing. `error`: raised instead of an answer."""

    asked: list[tuple[str, str | None, AnyLaunchRequest, Requester]] = field(default_factory=list)
    jobs: dict[str, JobView] = field(default_factory=dict)
    error: Exception | None = None

    def _launched(self, verb: str, run: str | None, request: AnyLaunchRequest, by: Requester) -> Launched:
        self.asked.append((verb, run, request, by))
        if self.error is not None:
            raise self.error
        begun = "new-run" if run is None or verb in ("fork", "replay") else run
        self.jobs[begun] = JobView(run=begun, job=begun, status="running")
        return Launched(runs=(LaunchedRun(run=begun, job=begun),))

    async def launch(self, request: LaunchRequest, by: Requester) -> Launched:
        """See `LaunchPort`."""
        return self._launched("launch", request.run, request, by)

    async def resume(self, run: str, request: ResumeRequest, by: Requester) -> Launched:
        """See `LaunchPort`."""
        return self._launched("resume", run, request, by)

    async def fork(self, run: str, request: ForkRequest, by: Requester) -> Launched:
        """See `LaunchPort`."""
        return self._launched("fork", run, request, by)

    async def replay(self, run: str, request: ReplayRequest, by: Requester) -> Launched:
        """See `LaunchPort`."""
        return self._launched("replay", run, request, by)

    async def job(self, run: str) -> JobView:
        """See `JobLookup`."""
        return self.jobs.get(run, JobView(run=run))


@dataclass
class LiveGateway:
    """A gateway on a real socket. `call` runs a coroutine where its control servers live."""

    url: str
    runs: Runs
    server: ControlServer
    launches: Launches
    announcer: ShardAnnouncer
    loop: asyncio.AbstractEventLoop

    def call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run this on the gateway's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=10)


def uploads_in(root: Path) -> BundleUploads:
    """Code bundles of up to 10 MiB."""
    return BundleUploads(root / "home", 10 * 1024 * 1024)


@contextmanager
def live_gateway(root: Path, wrap: Callable[[Any], Any] = lambda app: app, port: int = 0) -> Iterator[LiveGateway]:
    """Serve with uvicorn in a thread until the block is left. `wrap` may put faults around the app."""
    launches = Launches()
    runs = Runs(root, launched=launches.jobs)
    ready = threading.Event()
    born: list[asyncio.AbstractEventLoop] = []
    announcer = ShardAnnouncer(root, runs, between_s=0.0)
    app = create_app(
        runs,
        token_book(),
        allowed_hosts=Settings().host_names,
        allowed_origins=[ORIGIN],
        launches=launches,
        jobs=launches,
        uploads=uploads_in(root),
        cluster=FakeCluster(),
        housekeeping=Housekeeping(root.parent, Surroundings(runs)),
        announcer=announcer,
    )
    config = uvicorn.Config(wrap(app), port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)

    async def serve() -> None:
        runs.handles[RUN] = server = open_server(RunFiles(root / RUN))
        await start_trainers(server)
        born.append(asyncio.get_running_loop())
        ready.set()
        await web.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        deadline = time.monotonic() + 10
        while not web.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bound = web.servers[0].sockets[0].getsockname()[1]
        server = runs.handles[RUN]
        assert isinstance(server, ControlServer)
        yield LiveGateway(f"http://127.0.0.1:{bound}", runs, server, launches, announcer, born[0])
    finally:
        web.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
