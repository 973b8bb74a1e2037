"""Who asks, and what they may ask: deny by default.

A client shows a bearer token; the gateway knows only SHA-256 digests. Every route stands in `ACCESS` with the roles
that may use it, and a route that does not stand there is closed to everybody. Nothing here reads a cookie or a query
string, so neither a browser's ambient power nor an access log can leak one.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from control_plane.config import ROLES, Role, Settings
from control_plane.core.commands import MAX_LABEL_CHARS, Intent
from control_plane.core.errors import Damaged, NotAllowed, NotFound, Overloaded

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

TOKEN_BYTES = 32
MAX_TOKEN_CHARS = 512
"""Longer than any token that we make; bounds what is hashed for a stranger."""

CLOSE_FORBIDDEN = 4403


class Unauthenticated(NotAllowed):
    """The token is missing or unknown."""

    status_hint = 401


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it is. The id is the author of the commands."""

    id: str
    role: Role


class TokenRecord(BaseModel):
    """What the gateway keeps of a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TokenBook(BaseModel):
    """The tokens that a gateway knows, as in its JSON file: `{"tokens": [{"id", "role", "sha256"}]}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[TokenRecord, ...] = ()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the file. Raises `NotFound` if it is missing, `Damaged` if it is not a list of tokens."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"there is no list of tokens at {path}: `steer up` makes one") from None
        except (OSError, ValidationError) as error:
            raise Damaged(f"the list of tokens at {path} cannot be used ({type(error).__name__})") from None

    def identify(self, token: str) -> Identity | None:
        """Whose token this is. Looks at every record, so the time it takes says nothing about any of them."""
        shown = digest(token[:MAX_TOKEN_CHARS])
        found = None
        for record in self.tokens:
            if hmac.compare_digest(record.sha256, shown):
                found = Identity(record.id, record.role)
        return found


def digest(token: str) -> str:
    """SHA-256 of a token. The tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


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


def admit(tokens: TokenBook, token: str | None, key: str) -> Identity:
    """Whose token this is, if its role may use the route. Raises `Unauthenticated` or `NotAllowed`."""
    identity = known(tokens, token)
    if identity.role not in ACCESS.get(key, frozenset()):
        raise NotAllowed(f"a token of role {identity.role} may not do this", role=identity.role)
    return identity


def known(tokens: TokenBook, token: str | None) -> Identity:
    """Whose token this is. Raises `Unauthenticated`."""
    if token is None:
        raise Unauthenticated("this needs a token: send it as 'Authorization: Bearer <token>'")
    identity = tokens.identify(token)
    if identity is None:
        raise Unauthenticated("this gateway does not know that token")
    return identity


def check_may_command(identity: Identity, intent: Intent) -> None:
    """Raises `NotAllowed` if this role may not give this command."""
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


def create_tokens(settings: Settings) -> TokenBook:
    """One local token per role, made if it is missing, and the list of their digests. May be called again.

    The token is written first and its digest after, so a call that was cut off is mended by the next.
    Records that are not ours (other ids) are kept. Raises `Damaged` if the list is there but cannot be used.
    """
    book = TokenBook.from_file(settings.tokens_file) if settings.tokens_file.exists() else TokenBook()
    ids = {role: f"local-{role}" for role in ROLES}
    records = [record for record in book.tokens if record.id not in ids.values()]
    for role, token_id in ids.items():
        token = _token_at(settings.token_file(role))
        records.append(TokenRecord(id=token_id, role=role, sha256=digest(token)))
    made = TokenBook(tokens=tuple(records))
    if made != book:
        _write_private(settings.tokens_file, made.model_dump_json(indent=2) + "\n")
    settings.tokens_file.chmod(0o600)
    return made


def _token_at(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    found = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if not found:
        found = secrets.token_urlsafe(TOKEN_BYTES)
        _write_private(path, found + "\n")
    path.chmod(0o600)
    return found


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one move; at no moment is there half of it, or one that others can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(opened, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
