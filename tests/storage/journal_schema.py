"""The JSON Schema of a journal's line, made from the models: `python -m tests.storage.journal_schema` writes it."""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic.json_schema import models_json_schema

from control_plane.core.model.intents import Intent
from control_plane.core.model.records import (
    ABOUT_A_COMMAND,
    CommandAccepted,
    Record,
    RunCreated,
    RunResumed,
)
from control_plane.storage.journal.segments import FORMAT_VERSION, READABLE_VERSIONS

FILE = Path(__file__).parents[2] / "docs" / "journal.schema.json"
HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
CRC = {"type": "string", "pattern": "^[0-9a-f]{8}$"}
COUNT = {"type": "integer", "minimum": 0}
NOT_FINITE = {"enum": ["NaN", "Infinity", "-Infinity"]}
RECORDS = get_args(get_args(Record)[0])
KINDS = [intent.model_fields["kind"].default for intent in get_args(get_args(Intent)[0])]
COMMANDS = (CommandAccepted, *ABOUT_A_COMMAND)


def schema() -> dict[str, Any]:
    """The whole document: any line of the newest version at its root, `Line1` for one of version 1."""
    _, models = models_json_schema([(record, "validation") for record in RECORDS], ref_template="#/$defs/{model}")
    definitions = models["$defs"]
    for record in RECORDS:
        body = definitions[record.__name__]
        body["properties"].pop("type")  # it stands in the line, beside the body
        body["properties"] = {name: _may_be_not_finite(plain) for name, plain in body["properties"].items()}
    measured = definitions["Evidence"]["properties"]
    definitions["Evidence"]["properties"] = {name: _may_be_not_finite(plain) for name, plain in measured.items()}
    lines = {f"{record.__name__}Line": _line(record) for record in RECORDS}
    older = {f"{record.__name__}Line1": _line(record, version=1) for record in COMMANDS}
    refs = [{"$ref": f"#/$defs/{name}"} for name in ("Header", *lines)]
    refs1 = [{"$ref": each["$ref"] + "1"} if each["$ref"].split("/")[-1] + "1" in older else each for each in refs]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of a Steerway journal",
        "description": f"Version {FORMAT_VERSION} of the format; `#/$defs/Line1` is a line of version 1. "
        "Keys that are not named beside `body` may be there, and are ignored.",
        "oneOf": refs,
        "$defs": dict(
            sorted({**definitions, **lines, **older, "Header": _header(), "Line1": {"oneOf": refs1}}.items())
        ),
    }


def _header() -> dict[str, Any]:
    after = dict.fromkeys(("segment", "size_bytes", "seq"), COUNT)
    properties = {
        "type": {"const": "Segment"},
        "version": {"enum": list(READABLE_VERSIONS)},
        "term": COUNT | {"minimum": 1},
        "after": {"type": "object", "properties": after, "required": list(after)},
        "prev": HASH,
        "crc": CRC,
    }
    return {
        "type": "object",
        "description": "The first line of a segment: not a record.",
        "properties": properties,
        "required": list(properties),
    }


def _line(record: Any, version: int = FORMAT_VERSION) -> dict[str, Any]:
    first = {"seq": COUNT | {"minimum": 1}, "time": {"type": "string"}, "type": {"const": record.__name__}}
    about: dict[str, Any] = {}
    if record in COMMANDS:
        said = ("accepted",) if record is CommandAccepted else get_args(record.model_fields["status"].annotation)
        status = {"const": said[0]} if len(said) == 1 else {"enum": list(said)}
        about = {"uuid": {"type": "string", "format": "uuid"}, "status": status}
        about |= {"command": {"enum": KINDS}, "arguments": {"type": "object"}}
    if record in (CommandAccepted, RunCreated, RunResumed):
        about |= {"author": {"type": "string"}}
    body = {"body": {"$ref": f"#/$defs/{record.__name__}"}}
    batch = COUNT | {"minimum": 1}
    last = {"batch": batch, "until": batch, "prev": HASH, "crc": CRC}
    properties = first | about | body | last
    optional = {"until"} | ({"command", "arguments"} if version == 1 else set())
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _may_be_not_finite(plain: dict[str, Any]) -> dict[str, Any]:
    """Measurements: JSON has no NaN and no infinity, so these are spelled."""
    number = {"type": "number"}
    for key in ("additionalProperties", "items"):
        if plain.get(key) == number:
            return plain | {key: {"anyOf": [number, NOT_FINITE]}}
    if plain.get("type") == "number":
        return {key: value for key, value in plain.items() if key != "type"} | {"anyOf": [number, NOT_FINITE]}
    if number in plain.get("anyOf", ()):
        return plain | {"anyOf": [*plain["anyOf"], NOT_FINITE]}
    return plain


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
