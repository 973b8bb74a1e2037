"""Who asks, and what they may ask: deny by default.

A client shows a bearer token; see `tokens`. Every route stands in `ACCESS` with the roles
that may use it, and a route that does not stand there is closed to everybody. Nothing here reads a cookie or a query
string, so neither a browser's ambient power nor an access log can leak one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from control_plane.config import ROLES, Role
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import NotAllowed, NotFound, Overloaded
from control_plane.gateway.tokens import Identity, Tokens

PREFIX = "/api/v1"
COMMANDS_PATH = f"{PREFIX}/runs/{{run}}/commands"

READERS = frozenset(ROLES)
COMMANDERS: frozenset[Role] = frozenset({"operator", "admin", "agent"})

PUBLIC = frozenset({f"GET {PREFIX}/health"})
"""What needs no token: it says nothing about any run."""

ACCESS: dict[str, frozenset[Role]] = {
    f"GET {PREFIX}/openapi.json": READERS,
    f"GET {PREFIX}/runs": READERS,
    f"GET {PREFIX}/runs/{{run}}": READERS,
    f"POST {COMMANDS_PATH}": COMMANDERS,
    f"GET {PREFIX}/runs/{{run}}/commands/{{uuid}}": READERS,
    f"GET {PREFIX}/runs/{{run}}/journal": READERS,
    f"GET {PREFIX}/runs/{{run}}/metrics": READERS,
    f"GET {PREFIX}/runs/{{run}}/logs": READERS,
    f"GET {PREFIX}/runs/{{run}}/tree": READERS,
    f"GET {PREFIX}/compare": READERS,
    f"WEBSOCKET {PREFIX}/runs/{{run}}/stream": READERS,
}

KINDS_OF_AGENT = frozenset(
    {"set_learning_rate", "set_knobs", "set_schedule", "save_checkpoint", "evaluate", "run_action"}
)
"""An agent may tune and look: what it changes is a number within the run's limits, and can be set back. A script's own
actions are for those that the run's limits name for agents, see `core.limits`.

For people: to hold or end a run, or to take it to another branch; to freeze parameters or reset them, and to delete
checkpoints, which no command takes back; to pin, for pins are what people rely on; and to take back other people's
commands.
"""

CLOSE_FORBIDDEN = 4403


class Unauthenticated(NotAllowed):
    """The token is missing or unknown."""

    status_hint = 401


def authorize(connection: HTTPConnection) -> None:
    """For every request of the app. Raises `Unauthenticated` or `NotAllowed`; remembers who asks.

    A WebSocket brings its token in its first message; here it is only checked that its route stands in `ACCESS`.
    """
    key = access_key(connection)
    if connection.scope["type"] == "websocket":
        if key not in ACCESS:
            raise WebSocketException(CLOSE_FORBIDDEN, "this route is open to nobody")
        return
    if key in PUBLIC:
        return
    identity = admit(connection.app.state.tokens, bearer_token(connection), key)
    connection.state.identity = identity


async def authorize_each(connection: HTTPConnection) -> None:
    """`authorize` as a dependency: FastAPI would hand a plain function to a thread, for every request."""
    authorize(connection)


def access_key(connection: HTTPConnection) -> str:
    """`GET /api/v1/runs/{run}`: how `ACCESS` names a route."""
    method = connection.scope.get("method", "WEBSOCKET")
    return f"{method} {getattr(connection.scope.get('route'), 'path', '')}"


def admit(tokens: Tokens, token: str | None, key: str) -> Identity:
    """Whose token this is, if its role may use the route. Raises `Unauthenticated` or `NotAllowed`."""
    identity = known(tokens, token)
    if identity.role not in ACCESS.get(key, frozenset()):
        raise NotAllowed(f"a token of role {identity.role} may not do this", role=identity.role)
    return identity


def known(tokens: Tokens, token: str | None) -> Identity:
    """Whose token this is. Raises `Unauthenticated`."""
    if token is None:
        raise Unauthenticated("this needs a token: send it as 'Authorization: Bearer <token>'")
    identity = tokens.identify(token)
    if identity is None:
        raise Unauthenticated("this gateway does not know that token, or it has expired or been revoked")
    return identity


def check_may_command(identity: Identity, intent: Intent) -> None:
    """Raises `NotAllowed` if this role may not give this command, `NotFound` if it names a run out of its scope."""
    named = getattr(intent, "run", None)
    if isinstance(named, str) and not identity.sees(named):
        raise NotFound(f"there is no run {named!r}")
    if identity.role == "agent" and intent.kind not in KINDS_OF_AGENT:
        raise NotAllowed(
            f"an agent may not {intent.kind.replace('_', ' ')}; it may {', '.join(sorted(KINDS_OF_AGENT))}",
            role=identity.role,
        )


def bearer_token(connection: HTTPConnection) -> str | None:
    """The token of the Authorization header; None if there is none."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class Seats:
    """How many connections one token holds at a time, of one sort."""

    def __init__(self, limit: int, what: str) -> None:
        """`what` names the sort in the plural, for the refusal."""
        self._limit, self._what = limit, what
        self._taken: dict[str, int] = {}

    @contextmanager
    def take(self, identity: Identity) -> Iterator[None]:
        """Hold a seat. Raises `Overloaded` if this token has no more."""
        taken = self._taken.get(identity.id, 0)
        if taken >= self._limit:
            raise Overloaded(f"this token already holds {taken} {self._what}; close one first", limit=self._limit)
        self._taken[identity.id] = taken + 1
        try:
            yield
        finally:
            self._taken[identity.id] -= 1
            if not self._taken[identity.id]:
                del self._taken[identity.id]
