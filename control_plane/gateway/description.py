"""OpenAPI description of the API: numbers that may be NaN, every problem, the bearer token, and the WebSocket.

FastAPI's own description would be wrong: it declares numbers where a diverged loss is sent as the text "NaN" (JSON has
no NaN, and null would mean that nothing was measured), and an error shape for 422 that is never sent.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from control_plane.gateway.auth import PREFIX, PUBLIC
from control_plane.gateway.problems import MAX_ERRORS_LISTED, MEDIA_TYPE
from control_plane.gateway.stream import AUTH_DEADLINE_S

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
SCHEMA_REF = "#/components/schemas/{model}"

OVERVIEW = f"""\
Every path but `{PREFIX}/health` requires a token, as `Authorization: Bearer TOKEN`. Every error is an
`{MEDIA_TYPE}` (RFC 9457), also where no operation is described: 404 for an unknown path, 405 for another method.

A measurement may be NaN or infinite, which JSON has no number for: such a member is sent as the text "NaN", "Infinity"
or "-Infinity", and its schema says so.

The journal can be followed over a WebSocket, which OpenAPI does not describe: `{PREFIX}/runs/RUN/stream?after=SEQ`.
The client's first message, within {AUTH_DEADLINE_S:g} s, is `{{"token": TOKEN}}`. Then come
`{{"type": "entry", "entry": LINE}}`, each line of the journal after SEQ once and in order, and every few seconds
`{{"type": "progress", "snapshot": SNAPSHOT}}`. Close codes: 1000 the run has ended; 4401 missing or unknown
token; 4403 Origin or role not allowed; 4404 no such run; 4422 invalid `after`; 4429 too many streams; 1013 reconnect
with `after` = the last seq."""

PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("BadRequest", "The request could not be read."),
    401: ("Unauthenticated", "The token is missing, unknown, expired or revoked."),
    403: ("NotAllowed", "The token's role is not allowed to do this."),
    404: ("NotFound", "No such run, command, checkpoint, parameter group, log or path."),
    405: ("MethodNotAllowed", "Method not allowed; the Allow header lists the allowed ones."),
    408: ("TooSlow", "The body was not received in time."),
    409: ("Refused", "Conflicts with recorded state, or the run accepts no commands. Nothing was changed."),
    413: ("TooLarge", "The body is too large, or a GET has one."),
    421: ("WrongHost", "The Host name is not allowed."),
    422: ("Invalid", "A parameter or a body field is invalid or exceeds one of the run's limits."),
    429: ("TooMany", "A rate or concurrency limit was reached; retry later."),
    500: ("InternalError", "Internal error; see the gateway's log."),
    503: (
        "Unavailable",
        "The control server does not answer; the outcome is unknown. Retry a command with the same uuid.",
    ),
}
"""By status: the response's name in `components`, and its meaning."""

ANYWHERE = (400, 405, 408, 413, 421, 429, 500, 503)

_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    405: {"Allow": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
}
_TEXT = {"type": "string"}
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "Why a request failed. Further members give details, such as `groups` or `course_seq`.",
    "properties": {
        "type": {"type": "string", "pattern": "^/problems/[a-z-]+$", "description": "kind of problem, for programs"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "the reason, as a sentence"},
        "errors": {
            "type": "array",
            "maxItems": MAX_ERRORS_LISTED,
            "description": "for 422: each invalid field, and what is allowed there",
            "items": {
                "type": "object",
                "properties": {"where": _TEXT, "what": _TEXT},
                "required": ["where", "what"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": True,
}


class _AsSent(GenerateJsonSchema):
    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Return the schema of a number in a response: also a text of `NOT_FINITE`, unless it must be finite."""
        number = super().float_schema(schema)
        if self.mode != "serialization" or not schema.get("allow_inf_nan", True):
            return number
        return {"anyOf": [number, {"type": "string", "enum": list(NOT_FINITE)}]}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of every REST route of `app`."""
    description = app.openapi()
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    schemas = _Schemas(routes)
    for route in routes:
        for method in route.methods or ():
            operation = description["paths"][route.path_format][method.lower()]
            _describe_operation(operation, route, method, schemas.named)
    description["info"]["description"] = OVERVIEW
    description["security"] = [{"bearer": []}]
    description["components"] = {
        "schemas": schemas.all | {"Problem": PROBLEM},
        "responses": {name: _response(status, text) for status, (name, text) in PROBLEMS.items()},
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "one of the gateway's tokens"}
        },
    }
    return description


class _Schemas:
    """JSON schemas of all bodies: by model and direction, and by name."""

    def __init__(self, routes: list[APIRoute]) -> None:
        answers = [(route.response_model, "serialization") for route in routes if route.response_model is not None]
        bodies = [(route.body_field.field_info.annotation, "validation") for route in routes if route.body_field]
        models: Any = dict.fromkeys((*answers, *bodies))
        self.named: Mapping[Any, Any]
        self.named, definitions = models_json_schema(list(models), schema_generator=_AsSent, ref_template=SCHEMA_REF)
        self.all: dict[str, Any] = definitions["$defs"]


def _describe_operation(operation: dict[str, Any], route: APIRoute, method: str, schemas: Mapping[Any, Any]) -> None:
    is_public = f"{method} {route.path_format}" in PUBLIC
    if is_public:
        operation["security"] = []
    if route.body_field is not None:
        body = route.body_field.field_info.annotation
        operation["requestBody"]["content"]["application/json"]["schema"] = schemas[body, "validation"]
    responses = operation["responses"]
    if route.response_model is not None:
        answer = responses[str(route.status_code)]["content"]["application/json"]
        answer["schema"] = schemas[route.response_model, "serialization"]
    responses.pop("422", None)  # FastAPI's own shape, which is never sent
    statuses = {*ANYWHERE, *(() if is_public else (401, 403))}
    statuses |= {404, 422} if operation.get("parameters") else set()
    statuses |= {409} if route.body_field is not None or "DELETE" in (route.methods or ()) else set()
    for status in sorted(statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/{PROBLEMS[status][0]}"}


def _response(status: int, text: str) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": SCHEMA_REF.format(model="Problem")}}}
    return {"description": text, "content": content} | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
