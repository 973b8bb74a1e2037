"""The gateway's ASGI app: request guard (host, admission control, body limits), authorization, routes.

`create_app` builds everything, so that a deployment can build it in the process where it runs. The app is stateless:
a `RunDirectory` finds the runs.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import cache
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Response
from starlette.datastructures import MutableHeaders

from control_plane.addresses import host_name
from control_plane.api.agent_views import AgentsPort
from control_plane.api.cluster import ClusterPort
from control_plane.api.launching import LaunchPort
from control_plane.api.messages import RunSummary
from control_plane.api.ports import OperatorPort
from control_plane.api.queueing import HousekeepingPort
from control_plane.api.versions import release
from control_plane.config import INGEST_MAX_BYTES
from control_plane.core.model.errors import SteerwayError
from control_plane.gateway.admission import AdmissionControl, is_at_most, rejection_of
from control_plane.gateway.agents.routes import NoAgents, add_agent_routes
from control_plane.gateway.auth import ConnectionLimit, authorize_each
from control_plane.gateway.bundles import UploadSlots, add_bundle_routes, closing_unread, is_upload
from control_plane.gateway.cluster_routes import NoCluster, add_cluster_routes
from control_plane.gateway.data.announcer import ShardAnnouncer
from control_plane.gateway.data.routes import add_data_routes
from control_plane.gateway.description import describe
from control_plane.gateway.health.routes import add_alert_routes
from control_plane.gateway.launching.background import Work, during
from control_plane.gateway.launching.jobs import JobLookup
from control_plane.gateway.launching.routes import NoLaunches, add_launch_routes
from control_plane.gateway.problems import NO_SNIFFING, install_problems, internal_problem, problem
from control_plane.gateway.queueing.routes import NoHousekeeping, add_queue_routes
from control_plane.gateway.routes import MAX_LONG_POLLS_PER_TOKEN, add_routes
from control_plane.gateway.stream import MAX_STREAMS_PER_TOKEN, add_stream
from control_plane.gateway.tokens import TokenLookup
from control_plane.storage.code.uploads import BundleUploads
from control_plane.storage.layout import RunFiles

MAX_INGESTS_PER_TOKEN, MAX_INGESTS = 4, 8
"""Requests with records at one time: each is checked in a thread, which takes processor time from all others."""

MAX_BODY_BYTES = 256 * 1024
"""A command is a few hundred bytes; this leaves a factor of a thousand."""

BODY_DEADLINE_S = 10.0
"""A slower client is treated as a slowloris attack."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


class RunDirectory(Protocol):
    """Lookup interface for runs: their summaries, handles and files."""

    async def list(self) -> Sequence[RunSummary]:
        """Return a summary of every run."""
        ...

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on the run's control server or, if closed, on its files. Raises `NotFound`, `Invalid`."""
        ...

    def files(self, run: str) -> RunFiles:
        """Return the run's files. Raises `NotFound` or `Invalid`."""
        ...


class RequestGuard:
    """ASGI middleware: Host check, admission control, limits on size and time of a body, last-resort error handler.

    The Host check stops DNS rebinding: a foreign page that resolves its own name to this address.
    The body is read here, up to the limit, and passed on in one message; not those of code
    bundles and of records.
    """

    def __init__(self, app: AsgiApp, allowed_hosts: Sequence[str], admission: AdmissionControl) -> None:
        """Wrap `app`; `allowed_hosts` are host names without a port."""
        self._app, self._allowed_hosts = app, frozenset(host.lower() for host in allowed_hosts)
        self._admission = admission

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "websocket" and not self._knows_host(scope):
            await send({"type": "websocket.close", "code": 4403, "reason": "wrong host"})
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        started = False

        async def remember_start(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(raw=message["headers"])["X-Content-Type-Options"] = NO_SNIFFING
            await send(message)

        try:
            if self._knows_host(scope):
                await self._admit(scope, receive, remember_start)
            else:
                wrong_host = problem(
                    421,
                    "wrong-host",
                    "this gateway does not know the name in the Host header: use 127.0.0.1 or localhost through a "
                    "tunnel, or add the name to STEERWAY_PUBLIC_NAMES where the gateway runs",
                )
                await wrong_host(scope, receive, remember_start)
        except Exception:
            log.exception("unhandled exception in a request")
            if not started:
                await internal_problem()(scope, receive, remember_start)

    async def _admit(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            owner = self._admission.enter(scope)
        except SteerwayError as error:
            await rejection_of(scope, error)(scope, receive, send)
            return
        try:
            if is_upload(scope):
                await self._app(scope, *closing_unread(receive, send))
                return
            receive, rejection = await _take_body(scope, receive)
            await (rejection or self._app)(scope, receive, send)
        finally:
            self._admission.leave(owner)

    def _knows_host(self, scope: MutableMapping[str, Any]) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return len(hosts) == 1 and host_name(hosts[0].decode("latin-1")) in self._allowed_hosts


async def _take_body(scope: MutableMapping[str, Any], receive: Receive) -> tuple[Receive, Response | None]:
    """Read the whole body; return it as the next message, or an error response if it is too large or too slow."""
    too_large = problem(
        413,
        "too-large",
        f"the body exceeds the limit of {MAX_BODY_BYTES} bytes",
        {"Connection": "close"},
        limit=MAX_BODY_BYTES,
    )
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not is_at_most(declared.decode("latin-1"), MAX_BODY_BYTES):
        return receive, too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            message = await receive()
            while message["type"] == "http.request":
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    return receive, too_large
                if not message.get("more_body", False):
                    message = {"type": "http.request", "body": bytes(body), "more_body": False}
                    break
                message = await receive()
    except TimeoutError:
        reason = f"the body was not received within {BODY_DEADLINE_S:g} s"
        return receive, problem(408, "too-slow", reason, {"Connection": "close"})
    return _then(message, receive), None


def _then(first: Message, rest: Receive) -> Receive:
    handed_on = False

    async def receive() -> Message:
        nonlocal handed_on
        if handed_on:
            return await rest()
        handed_on = True
        return first

    return receive


def create_app(
    runs: RunDirectory,
    tokens: TokenLookup,
    *,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    admission: AdmissionControl | None = None,
    launches: LaunchPort | None = None,
    jobs: JobLookup | None = None,
    uploads: BundleUploads | None = None,
    cluster: ClusterPort | None = None,
    housekeeping: HousekeepingPort | None = None,
    agents: AgentsPort | None = None,
    announcer: ShardAnnouncer | None = None,
    ingest_max_bytes: int = INGEST_MAX_BYTES,
    background: Sequence[Work] = (),
) -> FastAPI:
    """Return the gateway's app.

    `allowed_hosts` are the accepted Host names (without ports). `allowed_origins` are the origins of pages that may
    open a stream (`http://127.0.0.1:8701`); programs send no Origin and need not be listed.
    `launches` begins and continues runs, `jobs` looks at their Ray jobs; without them these routes answer 503.
    `cluster` looks at the nodes; without it its routes answer 503.
    `housekeeping` answers for the queue, usage and deletion, `agents` for the agents' processes.
    `announcer` brings new records of live sources to the ranks; one request may bring `ingest_max_bytes` of them.
    `background`: what runs for as long as the app does.
    There are no CORS headers: a browser's page talks to the console, and the console to the gateway.
    """
    app = _app_with_routes(background)
    app.state.runs, app.state.tokens = runs, tokens
    app.state.launches, app.state.jobs = launches or NoLaunches(), jobs or NoLaunches()
    app.state.housekeeping = housekeeping or NoHousekeeping()
    app.state.agents = agents or NoAgents()
    app.state.allowed_origins = frozenset(allowed_origins)
    app.state.long_polls = ConnectionLimit(MAX_LONG_POLLS_PER_TOKEN, "long polls")
    app.state.streams = ConnectionLimit(MAX_STREAMS_PER_TOKEN, "streams")
    app.state.uploads, app.state.upload_slots = uploads, UploadSlots()
    app.state.announcer, app.state.ingest_max_bytes = announcer, ingest_max_bytes
    app.state.ingest_slots = UploadSlots(MAX_INGESTS_PER_TOKEN, MAX_INGESTS, "records")
    app.state.unauthenticated = set()
    app.state.cluster = cluster or NoCluster()
    app.state.openapi = _description()
    app.add_middleware(RequestGuard, allowed_hosts=allowed_hosts, admission=admission or AdmissionControl(tokens))
    return app


def _app_with_routes(background: Sequence[Work] = ()) -> FastAPI:
    app = FastAPI(
        lifespan=during(background),
        title="Steerway",
        summary="Steer training runs while they train.",
        version=release(not_installed="0"),
        dependencies=[Depends(authorize_each)],
        generate_unique_id_function=lambda route: route.name,
        openapi_url=None,  # our own route serves it, behind a token like every other
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_problems(app)
    add_routes(app)
    add_launch_routes(app)
    add_bundle_routes(app)
    add_queue_routes(app)
    add_stream(app)
    add_cluster_routes(app)
    add_alert_routes(app)
    add_agent_routes(app)
    add_data_routes(app)
    return app


@cache
def _description() -> bytes:
    """Return the API's OpenAPI description, which is the same for every app.

    Building it takes over a second and would block the event loop, so it is built once, before the first request.
    """
    return json.dumps(describe(_app_with_routes())).encode()
