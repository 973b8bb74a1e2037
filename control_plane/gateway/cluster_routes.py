"""Routes about the cluster: its nodes and resources, and the checks of `steer doctor`."""

from collections.abc import Awaitable, Callable
from typing import NoReturn

from fastapi import FastAPI, Request, Response

from control_plane.api.cluster import ClusterChecks, ClusterPort, ClusterView
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.gateway.auth import PREFIX
from control_plane.gateway.routes import respond


class NoCluster:
    """The cluster of a gateway that runs on none."""

    async def view(self) -> NoReturn:
        """Raise `Unavailable`."""
        raise Unavailable("this gateway does not run on a Ray cluster")

    check = view


def _cluster(request: Request) -> ClusterPort:
    cluster: ClusterPort = request.app.state.cluster
    return cluster


async def read_cluster(request: Request) -> Response:
    """Return the cluster's nodes with their releases and actors, its resources, and those that are free."""
    return respond(await _cluster(request).view())


async def check_cluster(request: Request) -> Response:
    """Check every node: releases, GPUs, clocks, Ray's variables, the shared storage. Takes seconds."""
    return respond(await _cluster(request).check())


def add_cluster_routes(app: FastAPI) -> None:
    """Add the routes. Function names are the operation ids."""
    routes: list[tuple[str, Callable[[Request], Awaitable[Response]], type[Message]]] = [
        ("/cluster", read_cluster, ClusterView),
        ("/cluster/checks", check_cluster, ClusterChecks),
    ]
    for path, endpoint, model in routes:
        app.add_api_route(PREFIX + path, endpoint, methods=["GET"], status_code=200, response_model=model)
