"""Route of a run's alerts. Acknowledging and snoozing are commands like any other."""

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from control_plane.api.messages import Alerts
from control_plane.gateway.auth import PREFIX
from control_plane.gateway.routes import directory_of, respond


async def read_alerts(
    request: Request,
    run: str,
    attention: Annotated[bool, Query(description="only those that nobody has seen and that still hold")] = False,
) -> Response:
    """Return a run's alerts, oldest first: all that need attention, and the newest others. The journal has the rest."""
    snapshot = await (await directory_of(request).handle(run)).snapshot()
    views = tuple(view for view in snapshot.alerts if view.needs_attention or not attention)
    return respond(Alerts(run=snapshot.run, step=snapshot.step, alerts=views), ETag=f'"{snapshot.seq}"')


def add_alert_routes(app: FastAPI) -> None:
    """Add the route."""
    app.add_api_route(
        PREFIX + "/runs/{run}/alerts", read_alerts, methods=["GET"], status_code=200, response_model=Alerts
    )
