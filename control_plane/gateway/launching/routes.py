"""Routes that begin and continue runs: the config's check, the run's folder and the job are the launch port's part.

POST answers 202 once the run's folder is durable and its job is submitted, or waits in the queue. Idempotent by uuid.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import FastAPI, Header, Request, Response

from control_plane.api.launching import (
    ForkRequest,
    JobView,
    Launched,
    LaunchPort,
    LaunchRequest,
    ReplayRequest,
    Requester,
    ResumeRequest,
)
from control_plane.core.model.errors import Conflict, NotAllowed, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.gateway.auth import PREFIX, check_may_command
from control_plane.gateway.launching.background import begin
from control_plane.gateway.launching.jobs import JobLookup
from control_plane.gateway.routes import chosen_uuid, directory_of, respond
from control_plane.gateway.tokens import Identity
from control_plane.runs.usage import submission_of
from control_plane.storage.layout import RunFiles

HEARD_LATELY_S = 15.0
"""Rank 0 reports about once a second, even while paused."""

IdempotencyKey = Annotated[str | None, Header()]


class NoLaunches:
    """Launch port and job lookup of a gateway that cannot start runs."""

    async def launch(self, request: LaunchRequest, by: Requester) -> Launched:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway cannot start runs: it was created without a launch service")

    async def resume(self, run: str, request: ResumeRequest, by: Requester) -> Launched:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway cannot resume runs: it was created without a launch service")

    async def fork(self, run: str, request: ForkRequest, by: Requester) -> Launched:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway cannot fork runs: it was created without a launch service")

    async def replay(self, run: str, request: ReplayRequest, by: Requester) -> Launched:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway cannot replay runs: it was created without a launch service")

    async def job(self, run: str) -> JobView:
        """Return that nothing is known about the run's job."""
        return JobView(run=run, status="unknown", message="this gateway does not watch Ray jobs")


async def launch_run(request: Request, body: LaunchRequest, idempotency_key: IdempotencyKey = None) -> Response:
    """Begin a run from a config and an uploaded code bundle. Idempotent by uuid."""
    identity: Identity = request.state.identity
    if body.run is not None and not identity.sees(body.run):
        raise NotAllowed(f"this token is for the runs {', '.join(identity.runs or ())} only, not for {body.run}")
    body = _with_uuid(body, idempotency_key)
    return _launched(request, await _finish(_port(request).launch(body, _requester(identity))))


async def resume_run(
    request: Request, run: str, body: ResumeRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Start a new job for a run that has none, from its newest checkpoint or the one in `back`. Idempotent by uuid."""
    identity = _check_sees(request, run)
    if body.back is not None:
        check_may_command(identity, body.back)
    await _check_no_other_driver(request, run)
    body = _with_uuid(body, idempotency_key)
    return _launched(request, await _finish(_port(request).resume(run, body, _requester(identity))))


async def fork_run(request: Request, run: str, body: ForkRequest, idempotency_key: IdempotencyKey = None) -> Response:
    """Start runs from a checkpoint of this run, one per element of `firsts`. Idempotent by uuid."""
    identity = _check_sees(request, run)
    body = _with_uuid(body, idempotency_key)
    return _launched(request, await _finish(_port(request).fork(run, body, _requester(identity))))


async def replay_run(
    request: Request, run: str, body: ReplayRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Start a run that repeats all steps and commands of this run. Idempotent by uuid."""
    identity = _check_sees(request, run)
    body = _with_uuid(body, idempotency_key)
    return _launched(request, await _finish(_port(request).replay(run, body, _requester(identity))))


async def read_job(request: Request, run: str) -> Response:
    """Return the newest Ray job of a run: whether it lives, and how it ended."""
    _check_sees(request, run)
    jobs: JobLookup = request.app.state.jobs
    return respond(await jobs.job(run))


async def _check_no_other_driver(request: Request, run: str) -> None:
    """Raise `Conflict` if a driver that the gateway did not submit is at work on the run: Ray's jobs do not name it."""
    runs = directory_of(request)
    if not await asyncio.to_thread(_is_of_a_ray_job, runs.files(run)):
        return
    snapshot = await (await runs.handle(run)).snapshot()
    if not snapshot.closed and snapshot.progress_age_s is not None and snapshot.progress_age_s < HEARD_LATELY_S:
        raise Conflict(
            f"run {run} is active: the job that began it reported {snapshot.progress_age_s:.0f} s ago; a paused run "
            "goes on by the command 'resume'"
        )


def _is_of_a_ray_job(files: RunFiles) -> bool:
    submission = submission_of(files)
    return submission is not None and submission.via == "ray-job"


async def _finish(work: Awaitable[Launched]) -> Launched:
    """Await a launch to its end, also if the client goes away: a repeated request then finds its result."""
    task = begin(work)
    task.add_done_callback(_retrieve)
    return await asyncio.shield(task)


def _retrieve(task: "asyncio.Future[Launched]") -> None:
    if not task.cancelled():
        task.exception()  # the client that would have received it may be gone


def _port(request: Request) -> LaunchPort:
    port: LaunchPort = request.app.state.launches
    return port


def _requester(identity: Identity) -> Requester:
    return Requester(id=identity.id, role=identity.role, runs=identity.runs)


def _check_sees(request: Request, run: str) -> Identity:
    """Return the token's owner. Raises `NotFound` for a run that is unknown or out of its scope."""
    directory_of(request).files(run)
    identity: Identity = request.state.identity
    return identity


Body = TypeVar("Body", LaunchRequest, ResumeRequest, ForkRequest, ReplayRequest)


def _with_uuid(body: Body, idempotency_key: str | None) -> Body:
    """Return the body with the request's uuid, from the body or the header. Raises `Invalid` if the two differ."""
    given = body.uuid if "uuid" in body.model_fields_set else None
    return body.model_copy(update={"uuid": chosen_uuid(given, idempotency_key)})


def _launched(request: Request, launched: Launched) -> Response:
    root, first = request.scope.get("root_path", ""), launched.runs[0].run
    return respond(launched, 202, Location=f"{root}{PREFIX}/runs/{first}")


def add_launch_routes(app: FastAPI) -> None:
    """Add the launch routes. Function names are the operation ids; `auth.ACCESS` lists the allowed roles."""
    routes: list[tuple[str, str, Callable[..., Awaitable[Response]], int, type[Message]]] = [
        ("POST", "/runs", launch_run, 202, Launched),
        ("POST", "/runs/{run}/resume", resume_run, 202, Launched),
        ("POST", "/runs/{run}/fork", fork_run, 202, Launched),
        ("POST", "/runs/{run}/replay", replay_run, 202, Launched),
        ("GET", "/runs/{run}/job", read_job, 200, JobView),
    ]
    for method, path, endpoint, status, model in routes:
        app.add_api_route(PREFIX + path, endpoint, methods=[method], status_code=status, response_model=model)
