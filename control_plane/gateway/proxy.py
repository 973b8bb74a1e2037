"""What stands in Serve's proxy: the turnstile, so that a refusal is spared the way to the app.

From the proxy to the app and back a request takes several milliseconds of processor time, on cores that a training
may want; a refusal at the proxy takes a quarter of one at most. Ray Serve calls `middlewares` in each of its proxies if
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` says so, which `steer up` sees to. On a cluster that somebody else has
started, the turnstile in the app is the only one.

Whom it does not know, it lets pass: the app says no. But streams that have said nothing yet are few here, too: each
holds a place of the app.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.config import settings
from control_plane.core.model.errors import Overloaded, SteerwayError
from control_plane.gateway.admission import Turnstile, UnwantedBody, turned_away
from control_plane.gateway.auth import Unauthenticated
from control_plane.gateway.priority import give_way
from control_plane.gateway.stream import MAX_STRANGERS, TRY_AGAIN
from control_plane.gateway.tokens import TokenFile

log = logging.getLogger(__name__)


class AtTheProxy:
    """ASGI middleware: only what the turnstile lets through goes on to Serve."""

    def __init__(self, app: ASGIApp, turnstile: Turnstile) -> None:
        self._app, self._turnstile = app, turnstile
        self._strangers = set[object]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "websocket":
            await self._stream(scope, receive, send)
            return
        owner = None
        try:
            owner = self._turnstile.enter(scope)
        except Unauthenticated:
            log.debug("somebody whom the proxy does not know is left to the app")
        except (Overloaded, UnwantedBody) as error:
            await turned_away(scope, error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._turnstile.leave(owner)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket: its place among the strangers is free again when it has said something, or has ended."""
        if len(self._strangers) >= MAX_STRANGERS:
            reason = f"{MAX_STRANGERS} connections have shown no token yet; come again in a moment"
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": TRY_AGAIN, "reason": reason})
            return
        place = object()

        async def until_it_speaks() -> Message:
            message = await receive()
            if message["type"] != "websocket.connect":
                self._strangers.discard(place)
            return message

        self._strangers.add(place)
        try:
            await self._app(scope, until_it_speaks, send)
        finally:
            self._strangers.discard(place)


def middlewares() -> list[Middleware]:
    """Called by Serve in the process of a proxy. Without a list of tokens there is nobody to be counted."""
    give_way()
    try:
        tokens = TokenFile(settings().tokens_file)
    except SteerwayError as error:
        log.warning("the turnstile is left to the app: %s", error.reason)
        return []
    return [Middleware(AtTheProxy, turnstile=Turnstile(tokens))]
