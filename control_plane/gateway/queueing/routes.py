"""Routes of the start queue, of disk usage, and of deletion."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from control_plane.api.queueing import DeletedRun, HousekeepingPort, StartQueue, Usage
from control_plane.config import Role
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.gateway.auth import PREFIX
from control_plane.gateway.routes import directory_of, respond
from control_plane.gateway.tokens import Identity


class NoHousekeeping:
    """Housekeeping of a gateway that was created without it."""

    async def queue(self, sees: Callable[[str], bool]) -> StartQueue:
        """Return an empty queue."""
        return StartQueue(waiting=(), started=0)

    async def usage(self, sees: Callable[[str], bool]) -> Usage:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway does not measure runs: it was created without housekeeping")

    async def delete(self, run: str, by: str, role: Role) -> DeletedRun:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway cannot delete runs: it was created without housekeeping")


async def read_queue(request: Request) -> Response:
    """Return the runs that wait for their start, in order, each with the reason."""
    return respond(await _port(request).queue(_identity(request).sees))


async def read_usage(request: Request) -> Response:
    """Return the disk usage of each run, split by kind of file, and of each owner."""
    return respond(await _port(request).usage(_identity(request).sees))


async def delete_run(request: Request, run: str) -> Response:
    """Delete an ended or queued run with all its files. For its owner, as an operator, and for admins."""
    identity = _identity(request)
    directory_of(request).files(run)
    return respond(await _port(request).delete(run, identity.id, identity.role))


def _port(request: Request) -> HousekeepingPort:
    port: HousekeepingPort = request.app.state.housekeeping
    return port


def _identity(request: Request) -> Identity:
    identity: Identity = request.state.identity
    return identity


def add_queue_routes(app: FastAPI) -> None:
    """Add the routes. Function names are the operation ids; `auth.ACCESS` lists the allowed roles."""
    routes: list[tuple[str, str, Callable[..., Awaitable[Response]], type[Message]]] = [
        ("GET", "/queue", read_queue, StartQueue),
        ("GET", "/usage", read_usage, Usage),
        ("DELETE", "/runs/{run}", delete_run, DeletedRun),
    ]
    for method, path, endpoint, model in routes:
        app.add_api_route(PREFIX + path, endpoint, methods=[method], status_code=200, response_model=model)
