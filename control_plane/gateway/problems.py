"""Error responses as `application/problem+json` (RFC 9457).

A problem has `type` (`/problems/<slug>`), `title`, `status` and `detail`, the reason as a sentence. An invalid body or
parameter adds `errors`: where, what was wrong, what is allowed. Input is never echoed, because it may contain a token.
An unexpected exception is a 500 without details; the log has them.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Route

from control_plane.core.model.commands import Change
from control_plane.core.model.errors import Overloaded, SteerwayError, Unavailable
from control_plane.core.model.intents import KINDS
from control_plane.core.model.values import MAX_NAME_CHARS, MAX_VALUES

MEDIA_TYPE = "application/problem+json"

NO_SNIFFING = "nosniff"
"""Sent with every response, so that a browser never sniffs a log as a page or a script."""

RETRY_AFTER_S = 1
"""A control server restarts, and a queue of commands drains, within about a second."""

MAX_ERRORS_LISTED = 10
"""A hostile body can have a quarter of a million errors; the response stays small."""

MAX_WHERE_CHARS = 120
MAX_WHAT_CHARS = 500

_OF_SEVERAL_KINDS = {
    "value": (1, f"must be a finite number, true, false, or a list of 1 to {MAX_VALUES} finite numbers"),
    "group": (1, "must be an index from 0, or a name"),
    "arguments": (2, f"must be text of at most {MAX_NAME_CHARS} characters, a finite number, true or false"),
}
"""By field name: how many parts of an error's location lead to it, itself included, and what it accepts."""

INTENT_FIELDS = frozenset({"intent", "back", "firsts"})
"""Fields of bodies that hold intents."""

_EXAMPLE = ', such as {"intent": {"kind": "pause"}}'

_TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Refused",
    413: "Too large",
    421: "Wrong host",
    422: "Invalid request",
    429: "Too many",
    503: "Unavailable",
}
_HTTP_ERRORS = {
    400: ("invalid", "the request could not be parsed"),
    404: ("not-found", "unknown path; runs are under /api/v1/runs"),
    405: ("method-not-allowed", "method not allowed on this path; the Allow header lists the allowed ones"),
}
_RESERVED = frozenset({"type", "title", "status", "detail", "instance"})


def problem(
    status: int, slug: str, detail: str, headers: Mapping[str, str] | None = None, **members: object
) -> Response:
    """Return a problem as a response."""
    content = {"type": f"/problems/{slug}", "title": _TITLES.get(status, "Error"), "status": status, "detail": detail}
    content |= {name: value for name, value in members.items() if name not in _RESERVED}
    return Response(
        to_json(content, inf_nan_mode="strings", fallback=str),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": NO_SNIFFING, **(headers or {})},
    )


def internal_problem() -> Response:
    """Return the response to an unexpected exception, without its details."""
    return problem(500, "error", "internal error in the gateway; see its log")


def problem_of(error: SteerwayError) -> Response:
    """Return the response to a `SteerwayError`; the slug names its class."""
    headers = {}
    if isinstance(error, Unavailable | Overloaded):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.status_hint == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="steerway"'
    return problem(error.status_hint, error.slug, error.reason, headers, **error.detail)


def install_problems(app: FastAPI) -> None:
    """Install handlers that turn every error of `app` into a problem."""

    async def on_our_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, SteerwayError)
        return problem_of(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        slug, detail = _HTTP_ERRORS.get(error.status_code, ("refused", "the request was refused"))
        headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
        return problem(error.status_code, slug, detail, headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        explained = [_explain(one, _body_of(request)) for one in error.errors()]
        return invalid_problem(list({(one["where"], one["what"]): one for one in explained}.values()))

    app.add_exception_handler(SteerwayError, on_our_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)


def _allowed_methods(request: Request) -> str:
    """Return the methods of all routes of the path: the router knows those of the first one only."""
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.methods]
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return ", ".join(
        sorted({method for each in routes if each.path_regex.match(path) for method in each.methods or ()})
    )


def _body_of(request: Request) -> type[BaseModel] | None:
    """Return the model of the body that the request's route takes, to name its fields."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def invalid_problem(errors: list[dict[str, str]]) -> Response:
    """Return a 422 from `{where, what}` pairs."""
    listed = errors[:MAX_ERRORS_LISTED]
    detail = "; ".join(f"{error['where']}: {error['what']}" for error in listed)
    unlisted = len(errors) - len(listed)
    return problem(422, "invalid", detail + (f"; and {unlisted} more" if unlisted else ""), errors=listed)


def _explain(error: Mapping[str, Any], request_model: type[BaseModel] | None) -> dict[str, str]:
    """Describe one of pydantic's errors without the input that caused it."""
    loc, accepted = _of_one_kind(tuple(error["loc"]))
    if accepted is not None:
        error = {"type": "mixed", "msg": accepted}
    shown = loc[:1] if error["type"] == "json_invalid" else loc
    places = [str(part) for part in shown if not (part in KINDS and _holds_intent(loc))]
    return {
        "where": ".".join(places)[:MAX_WHERE_CHARS],
        "what": _what(error, loc, request_model)[:MAX_WHAT_CHARS],
    }


def _what(error: Mapping[str, Any], loc: tuple[Any, ...], request_model: type[BaseModel] | None) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "json_invalid":
            at = f" (at character {loc[-1]})" if loc[-1] else ""
            return f"invalid JSON: {context.get('error', 'it cannot be parsed')}{at}"
        case "union_tag_invalid":
            return f"unknown kind; allowed are {', '.join(KINDS)}"
        case "union_tag_not_found":
            return f"'kind' is missing; allowed are {', '.join(KINDS)}"
        case "extra_forbidden":
            return f"unknown field; allowed are {', '.join(_allowed_members(loc, request_model))}"
        case "missing" if loc == ("body",):
            named = "intent" in request_model.model_fields if request_model is not None else False
            return f"must be a JSON object{_EXAMPLE if named else ''}"
        case "model_attributes_type" | "model_type" | "dict_type" | "dict_attributes_type":
            return "must be a JSON object, sent with Content-Type: application/json"
        case _:
            return str(error["msg"]).removeprefix("Value error, ")


def _of_one_kind(loc: tuple[Any, ...]) -> tuple[tuple[Any, ...], str | None]:
    """Shorten the location of a union's error to the field itself, and return what that field accepts, else None."""
    for name, (parts, accepted) in _OF_SEVERAL_KINDS.items():
        if _holds_intent(loc) and name in loc:
            end = loc.index(name) + parts
            if len(loc) > end:
                return loc[:end], accepted
    return loc, None


def _allowed_members(loc: tuple[Any, ...], request_model: type[BaseModel] | None) -> list[str]:
    kind = next((part for part in loc if part in KINDS), None) if _holds_intent(loc) else None
    if kind == "set_knobs" and "changes" in loc:
        return list(Change.model_fields)
    model = KINDS[kind] if kind else request_model
    return list(model.model_fields) if model is not None else []


def _holds_intent(loc: tuple[Any, ...]) -> bool:
    """Return whether the place is inside of an intent, whose kind is a part of the place."""
    return any(part in INTENT_FIELDS for part in loc)
