"""The gateway on Ray Serve.

    python -m control_plane.gateway.deploy

Connects to the cluster at `settings().ray_address`, deploys, waits until the gateway answers, and exits: Serve keeps
it running. Stateless: runs are found in their folders and reached through their control actors.
"""

import asyncio
import logging
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client

from control_plane.actor.cluster_view import RayCluster, cause_of
from control_plane.actor.control_actor import is_serving, of_the_head
from control_plane.actor.remote import RayHandle
from control_plane.addresses import check_certificate
from control_plane.api.messages import RunSummary
from control_plane.api.ports import OperatorPort
from control_plane.config import Settings, settings
from control_plane.core.model.errors import Conflict, SteerwayError, Unavailable
from control_plane.gateway.agents.generators import GeneratorSupervisor
from control_plane.gateway.agents.supervisor import AgentSupervisor
from control_plane.gateway.app import create_app
from control_plane.gateway.data.announcer import ShardAnnouncer
from control_plane.gateway.health.webhooks import Webhooks
from control_plane.gateway.launching.ray_access import RayJobs, RunsOnRay
from control_plane.gateway.launching.service_process import ServiceProcesses
from control_plane.gateway.launching.watch import JobWatch
from control_plane.gateway.priority import lower_priority
from control_plane.gateway.queueing.housekeeping import Housekeeping
from control_plane.gateway.queueing.on_ray import OnRay
from control_plane.gateway.tokens import TokenFile, create_tokens
from control_plane.server.archive import ArchivedRun
from control_plane.storage.code.uploads import BundleUploads
from control_plane.storage.layout import RunFiles, find_run, list_runs

APPLICATION = "gateway"
MAX_ONGOING_REQUESTS = 500
"""Each WebSocket and long poll counts as one; Serve's default of 5 would block all other clients."""

HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S = 1.0, 5.0
"""A dead replica is detected at the next check, a hung one after three; Serve's defaults are 10 and 30 s."""

READY_WITHIN_S = 60.0


class RayRuns:
    """Run directory of this installation on Ray. Implements `gateway.app.RunDirectory`."""

    def __init__(self, where: Settings) -> None:
        self._where = where
        self._handles: dict[str, OperatorPort] = {}
        self.queued: Callable[[str], Awaitable[OperatorPort | None]] | None = None

    def files(self, run: str) -> RunFiles:
        """Return the run's files. Raises `NotFound` or `Invalid`."""
        return find_run(self._where.runs_dir, run)

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on the run's control actor, or on its files if it is closed. Raises `NotFound`, `Invalid`.

        Cached handles are invalidated: closing a run retires its actor, so an actor handle is valid while Ray knows the
        actor's name. Resuming a run starts a new journal segment, so an archive is valid while there is no newer one.
        """
        files = self.files(run)
        if self.queued is not None and (waiting := await self.queued(run)) is not None:
            return waiting
        known = self._handles.get(run)
        if isinstance(known, RayHandle) and not await asyncio.to_thread(is_serving, files):
            known = None
        if isinstance(known, ArchivedRun) and await asyncio.to_thread(known.has_gone_on):
            known = None
        if known is None:
            archived = await asyncio.to_thread(_archived, files)
            known = self._handles[run] = archived or RayHandle(files)
        return known

    async def list(self) -> list[RunSummary]:
        """Return a summary of every run; one that cannot be read has the kind of error as its status."""
        runs = await asyncio.to_thread(list_runs, self._where.runs_dir)
        return list(await asyncio.gather(*(self._summary(files) for files in runs)))

    async def _summary(self, files: RunFiles) -> RunSummary:
        try:
            snapshot = await (await self.handle(files.run)).snapshot()
        except SteerwayError as error:
            return RunSummary(
                run=files.run, name=files.run, status=error.slug, step=0, total_steps=0, created_at="", world_size=0
            )
        return RunSummary.of(snapshot)


def _archived(files: RunFiles) -> OperatorPort | None:
    """Return an archive handle if the run is closed or imported (which has no actor until it is resumed), else None."""
    if not files.journal.is_dir():
        return None
    archived = ArchivedRun(files)
    over = archived.closed or archived.renamed or archived.only_imported
    return archived if over else None


def deploy(where: Settings) -> None:
    """Deploy on Ray Serve, with a local token for each role. Idempotent: a running gateway is replaced.

    Raises `Unavailable` if there is no cluster or the gateway does not start, `Conflict` if Ray Serve is used by others
    on another port, `Damaged` for a token list that cannot be used.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    create_tokens(where)
    TokenFile(where.tokens_file)  # the app reads it, too; here an error is a sentence, there the end of a log
    connect(where.ray_address)
    _start_serve(where)
    try:
        serve.run(_application(where), name=APPLICATION, route_prefix="/", blocking=False)
    except (RayError, RuntimeError, TimeoutError, ValueError) as error:
        raise Unavailable(f"Ray Serve did not start the gateway: {cause_of(error)}") from None
    _wait_until_ready(where)


def _http_options(where: Settings) -> HTTPOptions:
    """Return where Serve's proxy listens. Raises `Invalid` for a certificate or a key that cannot be used."""
    if where.tls_cert is None or where.tls_key is None:
        return HTTPOptions(host=where.host, port=where.gateway_port)
    check_certificate(where.tls_cert, where.tls_key)
    return HTTPOptions(
        host=where.host, port=where.gateway_port, ssl_certfile=str(where.tls_cert), ssl_keyfile=str(where.tls_key)
    )


def connect(address: str) -> str:
    """Connect to Ray, if this process is not connected yet; return the URL of its dashboard, or an empty text.

    Raises `Unavailable`.
    """
    try:
        context = ray.init(
            address=address,
            namespace="serve",
            logging_level=logging.WARNING,
            log_to_driver=False,
            ignore_reinit_error=True,
        )
    except ConnectionError:
        raise Unavailable(f"no Ray cluster is running at {address}; start one with `steer up`") from None
    except (RayError, RuntimeError, ValueError) as error:
        raise Unavailable(f"the Ray cluster at {address} cannot be used: {cause_of(error)}") from None
    return str(getattr(context, "dashboard_url", "") or "")


def remove() -> bool:
    """Remove the gateway from the connected cluster, and Ray Serve unless others use it. Idempotent.

    Returns whether there was a gateway.
    """
    if _get_global_client(raise_if_no_controller_running=False) is None:
        return False
    applications = set(serve.status().applications)
    if APPLICATION in applications:
        serve.delete(APPLICATION)
    if not applications - {APPLICATION}:
        serve.shutdown()  # type: ignore[no-untyped-call]
    return APPLICATION in applications


def _start_serve(where: Settings) -> None:
    wanted = _http_options(where)
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None and any(
        getattr(running.http_config, name) != getattr(wanted, name) for name in ("host", "port", "ssl_certfile")
    ):
        others = sorted(set(serve.status().applications) - {APPLICATION})
        at = f"{running.http_config.host}:{running.http_config.port}"
        if others:
            raise Conflict(
                f"Ray Serve runs on this cluster already, at {at}, for {', '.join(others)}, and listens on one port "
                f"only: set the gateway's address to that one, or remove these applications first"
            )
        serve.shutdown()  # type: ignore[no-untyped-call]  # it serves nobody else, and its port cannot be changed
    # One proxy: each applies admission control by itself, so several would multiply the limits.
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=wanted)


def _application(where: Settings) -> Any:
    def build() -> Any:
        lower_priority()
        runs, ray_jobs = RayRuns(where), RayJobs(where)
        housekeeping = Housekeeping(where.home, OnRay(runs, ray_jobs, where.environment()))
        runs.queued = housekeeping.queued
        jobs = JobWatch(ray_jobs, RunsOnRay(where))
        webhooks = Webhooks(where.webhooks_file, where.home / "webhooks", runs, console_url=where.console_url)
        agents, generators = AgentSupervisor(where, runs), GeneratorSupervisor(where, runs)
        announcer = ShardAnnouncer(where.runs_dir, runs)
        return create_app(
            runs,
            TokenFile(where.tokens_file),
            allowed_hosts=where.host_names,
            allowed_origins=where.origins,
            launches=ServiceProcesses(where.environment()),
            uploads=BundleUploads(where.home, where.bundle_max_bytes),
            cluster=RayCluster(where.home, where.signing_key),
            housekeeping=housekeeping,
            jobs=jobs,
            agents=agents,
            announcer=announcer,
            ingest_max_bytes=where.ingest_max_bytes,
            background=[
                housekeeping.run_forever,
                jobs.watch,
                webhooks.run_forever,
                agents.run_forever,
                generators.run_forever,
                announcer.run_forever,
            ],
        )

    @serve.deployment(
        name="gateway",
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={
            "num_cpus": 0,
            "resources": of_the_head(),  # where its proxy is, and a local dashboard answers
            "runtime_env": {"env_vars": where.environment()},
        },
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )
    @serve.ingress(build)
    class Gateway:
        """Serve deployment of the FastAPI app."""

    return Gateway.bind()  # type: ignore[attr-defined]


def _wait_until_ready(where: Settings) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            # Nothing secret is sent, and the certificate may be for another name than this machine's own address.
            unverified = ssl._create_unverified_context()
            with urllib.request.urlopen(where.own_gateway_health_url, timeout=2, context=unverified) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise Unavailable(f"the gateway did not answer at {where.own_gateway_url} within {READY_WITHIN_S:.0f} s")


if __name__ == "__main__":
    try:
        deploy(settings())
    except SteerwayError as error:
        print(f"steer: {error.reason}", file=sys.stderr)
        sys.exit(error.exit_code)
