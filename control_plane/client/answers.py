"""Answers of a gateway, and of things that are not one: parsed into messages, or raised as errors."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from control_plane.core.model.errors import (
    Conflict,
    Invalid,
    NotAllowed,
    NotFound,
    Overloaded,
    Refused,
    SteerwayError,
    Unavailable,
    errors_by_slug,
)
from control_plane.core.model.records import Entry

if TYPE_CHECKING:
    import httpx

_PROBLEM_MEMBERS = frozenset({"type", "title", "status", "detail", "instance"})

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


def error_of(answer: "httpx.Response", base_url: str) -> SteerwayError:
    """Return the error in a problem+json response, with the class raised by the server."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return not_ours(base_url, f"HTTP {answer.status_code}")
    problem = parse_json(answer.content, base_url)
    slug = str(problem.get("type", "")).rsplit("/", 1)[-1]
    kind = errors_by_slug().get(slug) or _kind_by_status(answer.status_code)
    error = kind(str(problem.get("detail") or problem.get("title") or "refused without a reason"))
    error.detail = {name: value for name, value in problem.items() if name not in _PROBLEM_MEMBERS}
    return error


def _kind_by_status(status: int) -> type[SteerwayError]:
    """Return the error class for an HTTP status, if a newer gateway sends an unknown slug."""
    if status >= 500:
        return Unavailable
    kinds: tuple[type[Refused], ...] = (NotAllowed, NotFound, Conflict, Overloaded, Invalid)
    by_status: dict[int, type[Refused]] = {kind.status_hint: kind for kind in kinds}
    return ({400: Invalid, 401: NotAllowed, 413: Invalid} | by_status).get(status, Refused)


def not_ours(base_url: str, what: str) -> Unavailable:
    """Return the error for an answer that no gateway sends."""
    return Unavailable(f"{base_url} is not a Steerway gateway ({what}): is the address right?")


def parse_json(content: str | bytes, base_url: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `Unavailable`."""
    try:
        answer = json.loads(content)
    except ValueError:
        raise not_ours(base_url, "its answer is not JSON, or was cut off") from None
    if not isinstance(answer, dict):
        raise not_ours(base_url, "its answer is not a JSON object")
    return answer


def parse(model: type[Model], answer: Any) -> Model:
    """Parse an answer as a message. Raises `Unavailable`: the gateway has another version."""
    return _understand(lambda: model.model_validate(answer), model.__name__)


def parse_entry(line: Any) -> Entry:
    """Parse a journal line. Raises `Unavailable`."""
    return _understand(lambda: Entry.from_line(line), "journal line")


def _understand(read: Callable[[], Value], what: str) -> Value:
    """Run a parser; raise `Unavailable` if it fails. Unknown members fail, too: the gateway has another version."""
    try:
        return read()
    except (ValidationError, KeyError, TypeError):
        raise Unavailable(
            f"the gateway's {what} cannot be parsed: do the gateway and this client have the same version?"
        ) from None


def member(answer: dict[str, Any], name: str) -> Any:
    """Return a member of an answer. Raises `Unavailable` without it."""
    return _understand(lambda: answer[name], f"answer without '{name}'")


def listed(answer: dict[str, Any], name: str) -> list[Any]:
    """Return a list in an answer. Raises `Unavailable` without it."""
    return _understand(lambda: list(answer[name]), f"list of {name}")
