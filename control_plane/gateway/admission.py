"""Who may send one more command: asked before its body is read, because a refusal must cost next to nothing.

It stands twice: in the app's front door, which every request passes, and, as `proxy` puts it there, in Serve's proxy,
where a refusal also spares the way to the app. First it is found out whose token it is. Then that owner may have so
many commands on their way at once, so that nobody stands in a long queue of another's; and then the owner's bucket is
asked (see `rate`). Nothing but the posting of a command is counted. A question (GET, HEAD) that announces a body is
refused, and without a known token no body is waited for: who sends none could hold a place for as long as it lasts.
"""

from collections import Counter

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from control_plane.core.model.errors import Invalid, Overloaded, SteerwayError
from control_plane.gateway.auth import COMMANDS_PATH, bearer_token, known
from control_plane.gateway.problems import problem_of
from control_plane.gateway.rate_limit import Allowance
from control_plane.gateway.tokens import Tokens

MAX_AT_ONCE = 8
"""Enough to keep the gateway busy, and all that stands before anybody else's command, instead of a whole burst. In a
storm on two busy cores this limit is reached before the rate is."""

MAX_UNREAD_BYTES = 64 * 1024
"""The server drops a body that nobody has read. One that is longer, or does not say how long it is, is not waited for:
the connection is closed."""

# The router's own reading of the path, so that nothing is a command there and none here.
_COMMANDS = compile_path(COMMANDS_PATH)[0]


class UnwantedBody(Invalid):
    """A body where none belongs."""

    status_hint = 413
    slug = "too-large"


class Turnstile:
    """One bucket, and so many places, for each owner of a token."""

    def __init__(self, tokens: Tokens, allowance: Allowance | None = None, max_at_once: int = MAX_AT_ONCE) -> None:
        self._tokens, self._allowance, self._max_at_once = tokens, allowance or Allowance(), max_at_once
        self._inside: Counter[str] = Counter()

    def enter(self, scope: Scope) -> str | None:
        """Let a request in, before its body is read. Answers who is to `leave`; None for what is not counted.

        Raises `Unauthenticated` or `UnwantedBody`, and then nobody is charged, or `Overloaded`.
        """
        if announces_body(scope):
            if scope["method"] in ("GET", "HEAD"):
                raise UnwantedBody(f"a {scope['method']} has no body here; send it without one")
            known(self._tokens, bearer_token(HTTPConnection(scope)))
        if not is_command(scope):
            return None
        identity = known(self._tokens, bearer_token(HTTPConnection(scope)))
        if self._inside[identity.id] >= self._max_at_once:
            raise Overloaded(
                f"{identity.id} has {self._max_at_once} commands on their way, and no more are taken at once; wait for "
                "an answer",
                at_once=self._max_at_once,
            )
        self._allowance.take(identity)
        self._inside[identity.id] += 1
        return identity.id

    def leave(self, owner: str | None) -> None:
        """The request has its answer, or will have none."""
        if owner is not None:
            self._inside[owner] -= 1


def is_command(scope: Scope) -> bool:
    """Whether this connection posts a command."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return _COMMANDS.match(scope["path"].removeprefix(scope.get("root_path", ""))) is not None


def announces_body(scope: Scope) -> bool:
    """Whether the headers of this connection say that a body follows."""
    if scope["type"] != "http":
        return False
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def is_at_most(declared: str, most: int) -> bool:
    """Whether a Content-Length is a number, of any number of digits, and no more than this."""
    digits = declared.lstrip("0") or "0" if declared else ""
    return digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) and int(digits) <= most


def turned_away(scope: Scope, error: SteerwayError) -> Response:
    """The answer to a request whose body was not read."""
    response = problem_of(error)
    declared = Headers(scope=scope).get("content-length", "")
    if isinstance(error, UnwantedBody) or not is_at_most(declared, MAX_UNREAD_BYTES):
        response.headers["Connection"] = "close"
    return response
