"""Authentication and authorization of requests: deny by default.

A client sends a bearer token; see `tokens`. `ACCESS` lists every route with the roles that may use it; a route that is
not listed is closed to everybody. Nothing here reads a cookie or a query string: cookies would allow CSRF, and query
strings end up in access logs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from control_plane.config import ROLES, Role
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import NotAllowed, NotFound, Overloaded
from control_plane.core.model.intents import KINDS
from control_plane.gateway.tokens import Identity, TokenLookup

PREFIX = "/api/v1"
BUNDLE_PATH = f"{PREFIX}/bundles/{{sha256}}"
DATA_PATH = f"{PREFIX}/runs/{{run}}/data/{{source}}"
COMMANDS_PATH = f"{PREFIX}/runs/{{run}}/commands"
LAUNCH_PATHS = (
    f"{PREFIX}/runs",
    *(f"{PREFIX}/runs/{{run}}/{verb}" for verb in ("resume", "fork", "replay")),
)
"""Routes that begin or continue a run."""

READERS = frozenset(ROLES)
STARTERS: frozenset[Role] = frozenset({"operator", "admin"})
COMMANDERS: frozenset[Role] = frozenset({"operator", "admin", "agent"})
LAUNCHERS: frozenset[Role] = frozenset({"operator", "admin"})
"""Who begins a run chooses what code the cluster executes."""

LOOKERS_INTO_NODES: frozenset[Role] = frozenset({"operator", "admin"})
"""A check starts a process on every node and writes to the shared folder."""

PUBLIC = frozenset({f"GET {PREFIX}/health"})
"""Routes that need no token: they reveal nothing about any run."""

ACCESS: dict[str, frozenset[Role]] = {
    f"GET {PREFIX}/openapi.json": READERS,
    f"GET {PREFIX}/runs": READERS,
    f"GET {PREFIX}/runs/{{run}}": READERS,
    f"POST {COMMANDS_PATH}": COMMANDERS,
    **{f"POST {path}": LAUNCHERS for path in LAUNCH_PATHS},
    f"GET {PREFIX}/runs/{{run}}/job": READERS,
    f"DELETE {PREFIX}/runs/{{run}}": LAUNCHERS,
    f"GET {PREFIX}/queue": READERS,
    f"GET {PREFIX}/usage": READERS,
    f"GET {PREFIX}/runs/{{run}}/commands/{{uuid}}": READERS,
    f"GET {PREFIX}/runs/{{run}}/journal": READERS,
    f"GET {PREFIX}/runs/{{run}}/metrics": READERS,
    f"GET {PREFIX}/runs/{{run}}/logs": READERS,
    f"GET {PREFIX}/runs/{{run}}/tree": READERS,
    f"GET {PREFIX}/runs/{{run}}/replay-check": READERS,
    f"GET {PREFIX}/runs/{{run}}/alerts": READERS,
    f"GET {PREFIX}/runs/{{run}}/agent": READERS,
    f"GET {PREFIX}/runs/{{run}}/data": READERS,
    # Of agents, generators alone: what they send is proposed to a person.
    f"POST {DATA_PATH}": COMMANDERS,
    f"GET {PREFIX}/compare": READERS,
    f"GET {BUNDLE_PATH}": STARTERS,
    f"PUT {BUNDLE_PATH}": STARTERS,
    f"GET {PREFIX}/cluster": READERS,
    f"GET {PREFIX}/cluster/checks": LOOKERS_INTO_NODES,
    f"WEBSOCKET {PREFIX}/runs/{{run}}/stream": READERS,
}

KINDS_OF_AGENT = frozenset(name for name, kind in KINDS.items() if kind.allowed_for_agents)
"""Kinds that the role `agent` may send; each says so itself, see `BaseIntent`."""

CLOSE_FORBIDDEN = 4403


class Unauthenticated(NotAllowed):
    """The token is missing or unknown."""

    status_hint = 401


def authorize(connection: HTTPConnection) -> None:
    """Authorize a request and store its identity in the connection. Raises `Unauthenticated` or `NotAllowed`.

    A WebSocket sends its token in its first message; here only its route is checked against `ACCESS`.
    """
    key = access_key(connection)
    if connection.scope["type"] == "websocket":
        if key not in ACCESS:
            raise WebSocketException(CLOSE_FORBIDDEN, "this route is closed")
        return
    if key in PUBLIC:
        return
    identity = authorize_token(connection.app.state.tokens, bearer_token(connection), key)
    connection.state.identity = identity


async def authorize_each(connection: HTTPConnection) -> None:
    """Run `authorize` as an async dependency: FastAPI would run a plain function in a thread, for every request."""
    authorize(connection)


def access_key(connection: HTTPConnection) -> str:
    """Return the key of the route in `ACCESS`: `GET /api/v1/runs/{run}`."""
    method = connection.scope.get("method", "WEBSOCKET")
    return f"{method} {getattr(connection.scope.get('route'), 'path', '')}"


def authorize_token(tokens: TokenLookup, token: str | None, key: str) -> Identity:
    """Return the identity of a token whose role may use the route. Raises `Unauthenticated` or `NotAllowed`."""
    identity = authenticate(tokens, token)
    if identity.role not in ACCESS.get(key, frozenset()):
        raise NotAllowed(f"a token of role {identity.role} is not allowed to do this", role=identity.role)
    return identity


def authenticate(tokens: TokenLookup, token: str | None) -> Identity:
    """Return the identity of a token. Raises `Unauthenticated`."""
    if token is None:
        raise Unauthenticated("a token is required: send it as 'Authorization: Bearer <token>'")
    identity = tokens.identify(token)
    if identity is None:
        raise Unauthenticated("the token is unknown, expired or revoked")
    return identity


def check_may_command(identity: Identity, intent: Intent) -> None:
    """Raise `NotAllowed` if the role may not give this command, `NotFound` if it names a run outside its scope."""
    named = getattr(intent, "run", None)
    if isinstance(named, str) and not identity.sees(named):
        raise NotFound(f"there is no run {named!r}")
    if identity.role == "agent" and intent.kind not in KINDS_OF_AGENT:
        raise NotAllowed(
            f"the role agent may not {intent.kind.replace('_', ' ')}; allowed are {', '.join(sorted(KINDS_OF_AGENT))}",
            role=identity.role,
        )


def bearer_token(connection: HTTPConnection) -> str | None:
    """Return the bearer token of the Authorization header, or None."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class ConnectionLimit:
    """Limit on the concurrent connections of each token, of one kind."""

    def __init__(self, limit: int, what: str) -> None:
        """Allow `limit` connections per token; `what` names the kind, in the plural, in the error message."""
        self._limit, self._what = limit, what
        self._taken: dict[str, int] = {}

    @contextmanager
    def take(self, identity: Identity) -> Iterator[None]:
        """Hold one connection slot. Raises `Overloaded` if the token has none left."""
        taken = self._taken.get(identity.id, 0)
        if taken >= self._limit:
            raise Overloaded(
                f"this token already has {taken} open {self._what}, the limit; close one first", limit=self._limit
            )
        self._taken[identity.id] = taken + 1
        try:
            yield
        finally:
            self._taken[identity.id] -= 1
            if not self._taken[identity.id]:
                del self._taken[identity.id]
