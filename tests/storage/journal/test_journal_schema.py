"""The documented format is the one that is written: `docs/journal.schema.json` against models and real lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.storage.journal_schema import COMMANDS, FILE, schema, text
from tests.storage.scenario import write_scenario, write_small, write_three_terms

JOURNALS = Path(__file__).parents[1] / "journals"
OF_COMMANDS = {record.__name__ for record in COMMANDS}


def lines_in(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line, with the version of its segment."""
    for path in sorted(directory.iterdir()):
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            yield lines[0]["version"], line


def validator(version: int) -> Draft202012Validator:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    if version == 1:
        document = {"$ref": "#/$defs/Line1", "$defs": document["$defs"]}
    return Draft202012Validator(document)


def check(directory: Path) -> set[str]:
    """Validate every line; answers the types that were seen."""
    validators, seen = {1: validator(1), 2: validator(2)}, set[str]()
    for version, line in lines_in(directory):
        problems = [error.message for error in validators[version].iter_errors(line)]
        assert problems == [], line
        seen.add(line["type"])
    return seen


def test_schema_file_is_made_from_the_models() -> None:
    """After a change: `python -m tests.storage.journal_schema`, and read the difference."""
    assert FILE.read_text(encoding="utf-8") == text()
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", sorted(path.name for path in JOURNALS.iterdir()))
def test_every_line_of_every_earlier_journal_is_valid(name: str) -> None:
    assert {"Segment", "CommandAccepted", "CommandSettled"} <= check(JOURNALS / name)


def test_every_line_of_a_journal_with_every_record_is_valid(tmp_path: Path) -> None:
    write_scenario(tmp_path)
    assert len(check(tmp_path)) == len(schema()["oneOf"])


@pytest.mark.parametrize("write", [write_small, write_three_terms], ids=lambda write: write.__name__)
def test_every_line_of_a_small_journal_is_valid(tmp_path: Path, write: Any) -> None:
    write(tmp_path)
    assert "CommandSettled" in check(tmp_path)


def test_every_line_about_a_command_says_what_it_asks(tmp_path: Path) -> None:
    write_scenario(tmp_path)
    about = [line for _, line in lines_in(tmp_path) if line["type"] in OF_COMMANDS]
    assert len(about) > 20
    accepted = {line["uuid"]: line for line in about if line["status"] == "accepted"}
    for line in about:
        assert all(key in line for key in ("uuid", "time", "status", "command", "arguments"))
        assert (line["command"], line["arguments"]) == tuple(
            accepted[line["uuid"]][key] for key in ("command", "arguments")
        )


@pytest.mark.parametrize("gone", ["uuid", "time", "status", "command", "arguments", "body", "prev", "crc", "seq"])
def test_line_about_a_command_without_a_key_is_not_valid(tmp_path: Path, gone: str) -> None:
    write_small(tmp_path)
    for _, line in lines_in(tmp_path):
        if line["type"] in OF_COMMANDS:
            assert validator(2).is_valid(line)
            assert not validator(2).is_valid({key: value for key, value in line.items() if key != gone})


@pytest.mark.parametrize(
    "change", [{"type": "Novelty"}, {"seq": 0}, {"status": "done"}, {"prev": "x"}, {"body": {"colour": 1}}], ids=str
)
def test_line_that_is_not_ours_is_not_valid(tmp_path: Path, change: dict[str, Any]) -> None:
    write_small(tmp_path)
    line = next(line for _, line in lines_in(tmp_path) if line["type"] == "CommandSettled")
    assert not validator(2).is_valid(line | change)
