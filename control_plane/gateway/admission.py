"""Admission control for commands and launches; rejects before the body is read: a rejection costs almost nothing.

Applied twice: in the app's request guard, which every request passes, and, installed by `proxy`, in Serve's proxy,
where a rejected request does not reach the app at all. Checks in order: the token's owner; the owner's concurrent
commands, so that nobody waits behind a long queue of another owner; the owner's rate limit (see `rate`). Only POSTs of
commands, and of what begins or continues a run, are counted. A GET or HEAD with a body is rejected, and no body is
awaited without a known token: a client that never sends it would occupy a slot (slowloris).
"""

from collections import Counter

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from control_plane.core.model.errors import Invalid, Overloaded, SteerwayError
from control_plane.gateway.auth import COMMANDS_PATH, LAUNCH_PATHS, authenticate, bearer_token
from control_plane.gateway.problems import problem_of
from control_plane.gateway.rate_limit import RateLimit
from control_plane.gateway.tokens import TokenLookup

MAX_AT_ONCE = 8
"""Enough to keep the gateway busy; bounds the queue before another owner's command to this many instead of a burst. In
a storm on two busy cores this limit is reached before the rate limit."""

MAX_UNREAD_BYTES = 64 * 1024
"""The server drains an unread body up to this size. For a longer one, or one of unknown length, the connection is
closed instead."""

# Parsed by the router's own function, so that both agree on which path is a command.
_COMMANDS = tuple(compile_path(path)[0] for path in (COMMANDS_PATH, *LAUNCH_PATHS))


class UnexpectedBody(Invalid):
    """A GET or HEAD request has a body."""

    status_hint = 413
    slug = "too-large"


class AdmissionControl:
    """Admission control: a rate limit and a limit of concurrent commands for each owner of a token."""

    def __init__(
        self, tokens: TokenLookup, rate_limit: RateLimit | None = None, max_at_once: int = MAX_AT_ONCE
    ) -> None:
        self._tokens, self._rate_limit, self._max_at_once = tokens, rate_limit or RateLimit(), max_at_once
        self._inside: Counter[str] = Counter()

    def enter(self, scope: Scope) -> str | None:
        """Admit a request before its body is read. Returns the owner to pass to `leave`; None if it is not counted.

        Raises `Unauthenticated` or `UnexpectedBody`, which count against no limit, or `Overloaded`.
        """
        if announces_body(scope):
            if scope["method"] in ("GET", "HEAD"):
                raise UnexpectedBody(f"a {scope['method']} request must not have a body")
            authenticate(self._tokens, bearer_token(HTTPConnection(scope)))
        if not is_command(scope):
            return None
        identity = authenticate(self._tokens, bearer_token(HTTPConnection(scope)))
        if self._inside[identity.id] >= self._max_at_once:
            raise Overloaded(
                f"{identity.id} already has {self._max_at_once} commands in progress, the limit; wait for a response",
                at_once=self._max_at_once,
            )
        self._rate_limit.take(identity)
        self._inside[identity.id] += 1
        return identity.id

    def leave(self, owner: str | None) -> None:
        """Release the slot of a request that has ended."""
        if owner is not None:
            self._inside[owner] -= 1


def is_command(scope: Scope) -> bool:
    """Return whether this request posts a command, or begins or continues a run."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return any(pattern.match(path) for pattern in _COMMANDS)


def announces_body(scope: Scope) -> bool:
    """Return whether the headers announce a body."""
    if scope["type"] != "http":
        return False
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def is_at_most(declared: str, most: int) -> bool:
    """Return whether a Content-Length is a number of at most `most`."""
    digits = declared.lstrip("0") or "0" if declared else ""
    return digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) and int(digits) <= most


def rejection_of(scope: Scope, error: SteerwayError) -> Response:
    """Return the response to a rejected request whose body was not read."""
    response = problem_of(error)
    declared = Headers(scope=scope).get("content-length", "")
    if isinstance(error, UnexpectedBody) or not is_at_most(declared, MAX_UNREAD_BYTES):
        response.headers["Connection"] = "close"
    return response
