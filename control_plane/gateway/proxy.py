"""Admission control in Ray Serve's proxy, so that a rejected request never reaches the app.

From the proxy to the app and back a request costs several milliseconds of processor time, on cores that a training
may need; a rejection at the proxy costs a quarter of one at most. Ray Serve calls `middlewares` in each of its proxies
if `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it, which `steer up` sets. On a cluster that was started
otherwise, only the app applies admission control.

Unknown tokens pass: the app rejects them. But unauthenticated streams are limited here, too: each occupies one of the
app's request slots.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.config import settings
from control_plane.core.model.errors import Overloaded, SteerwayError
from control_plane.gateway.admission import AdmissionControl, UnexpectedBody, rejection_of
from control_plane.gateway.auth import Unauthenticated
from control_plane.gateway.priority import lower_priority
from control_plane.gateway.stream import MAX_UNAUTHENTICATED, TRY_AGAIN
from control_plane.gateway.tokens import TokenFile

log = logging.getLogger(__name__)


class ProxyAdmission:
    """ASGI middleware: forwards only admitted requests to Serve."""

    def __init__(self, app: ASGIApp, admission: AdmissionControl) -> None:
        self._app, self._admission = app, admission
        self._unauthenticated = set[object]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "websocket":
            await self._stream(scope, receive, send)
            return
        owner = None
        try:
            owner = self._admission.enter(scope)
        except Unauthenticated:
            log.debug("unknown token: left to the app")
        except (Overloaded, UnexpectedBody) as error:
            await rejection_of(scope, error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._admission.leave(owner)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one WebSocket; it counts as unauthenticated until its first message."""
        if len(self._unauthenticated) >= MAX_UNAUTHENTICATED:
            reason = f"too many unauthenticated connections ({MAX_UNAUTHENTICATED}); retry in a moment"
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": TRY_AGAIN, "reason": reason})
            return
        place = object()

        async def until_it_speaks() -> Message:
            message = await receive()
            if message["type"] != "websocket.connect":
                self._unauthenticated.discard(place)
            return message

        self._unauthenticated.add(place)
        try:
            await self._app(scope, until_it_speaks, send)
        finally:
            self._unauthenticated.discard(place)


def middlewares() -> list[Middleware]:
    """Return the middlewares for a Serve proxy, which calls this; none without a token list."""
    lower_priority()
    try:
        tokens = TokenFile(settings().tokens_file)
    except SteerwayError as error:
        log.warning("no admission control in the proxy, only in the app: %s", error.reason)
        return []
    return [Middleware(ProxyAdmission, admission=AdmissionControl(tokens))]
