"""How a transcript spells things: directives, values, and the records of a journal."""

import json
from uuid import UUID

from control_plane.core.model.records import Entry
from control_plane.core.rules.agent.proposals import uuid_of_made
from control_plane.core.rules.agent.trials import uuid_of
from control_plane.core.rules.branch_rules import first_uuid

Words = dict[str, str]
FIRST = {first_uuid(UUID(int=number), place): f"{number}.{place + 1}" for number in range(30) for place in range(8)}
"""What branches begin with, by the rollback that said so."""

MADE = {uuid_of_made(UUID(int=number)): f"{number}.made" for number in range(30)}
"""What came of proposals."""

OF_TRIAL = ("base-0", "without", "kept-0", "branch", "with", "return")
TRIED = {uuid_of(UUID(int=number), name): f"{number}.{name}" for number in range(30) for name in OF_TRIAL}
TRIED |= {first_uuid(uuid_of(UUID(int=number), "branch"), 0): f"{number}.with-it" for number in range(30)}
"""Commands of trials, by the proposal that is tried."""


def pairs(text: str) -> Words:
    """`rank=1 reason=it is stuck` as a dict. A value ends where the next key begins."""
    found: Words = {}
    key = ""
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals:
            key, found[name] = name, value
        else:
            found[key] += f" {word}"
    return found


def numbered(uuid: UUID) -> str:
    """A command as it is called in a scene: `3`, `3.1` for the first change of the rollback 3, `3.made` for what came
    of the proposal 3."""
    return FIRST.get(uuid) or MADE.get(uuid) or TRIED.get(uuid) or str(uuid.int)


def literal(text: str) -> object:
    """A value as JSON would read it; plain words are strings."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def compact(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value)


def shown(entry: Entry) -> str:
    """A record on one line: without empty fields, times and long uuids."""
    body = entry.line()["body"]
    if entry.record.type in ("ProposalClosed", "TrialStarted"):
        body |= {key: numbered(UUID(body[key])) for key in ("proposal", "command") if body.get(key)}
    command = body.pop("command", None) if entry.record.type == "CommandAccepted" else None
    body |= (
        {"uuid": command["uuid"], **command["intent"], "not_before_step": command["not_before_step"]} if command else {}
    )
    body.pop("ranks", None) if entry.record.type == "GenerationStarted" else None
    uuid = f" {numbered(UUID(body.pop('uuid')))}" if "uuid" in body else ""
    body.pop("branch") if body.get("branch") == "main" else None
    kept = {key: value for key, value in body.items() if value not in (None, "", [], {}, 0)}
    return f"#{entry.seq} {entry.record.type}{uuid} {compact(kept)}"
