"""Records: what was written is what is read, to the last bit."""

import json
import math
from typing import get_args

import pytest
from pydantic import ValidationError

from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, Record
from control_plane.storage.journal.command_index import CommandIndex
from tests.core.examples import EVERY_INTENT, accepted, command, every_record, repeated, settled, uuid

NESTED = ("changes", "settings", "intent")
"""Fields that hold objects: their defaults are spelled out."""


def through_text(entry: Entry) -> Entry:
    """The entry as a reader of the file gets it."""
    return Entry.from_line(json.loads(json.dumps(entry.line(), allow_nan=False)))


@pytest.mark.parametrize("record", every_record(), ids=lambda record: record.type)
def test_line_of_every_record_type_comes_back_equal(record: Record) -> None:
    entry = Entry(seq=3, time="2030-01-01T00:00:00.000Z", record=record)
    assert through_text(entry) == entry


def test_examples_cover_every_record_type() -> None:
    assert {type(record) for record in every_record()} == set(get_args(get_args(Record)[0]))


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 1e-4, 2.0**-1074, -0.0])
def test_float_in_a_reading_comes_back_bit_by_bit(value: float) -> None:
    record = through_text(Entry(seq=1, time="t", record=settled(1, after={"lr": [value]}))).record
    assert isinstance(record, CommandSettled)
    assert record.after is not None
    assert record.after["lr"][0].hex() == value.hex()


def test_reading_that_is_not_finite_is_spelled_the_same_live_and_from_the_file() -> None:
    reading = {"loss": math.nan, "all": [math.inf, (-math.inf, 1.0)], "deep": {"x": math.nan}}
    entry = Entry(seq=1, time="t", record=settled(1, after=reading, ranks=(reading,)))
    spelled = {"loss": "NaN", "all": ["Infinity", ["-Infinity", 1.0]], "deep": {"x": "NaN"}}
    assert entry.record.model_dump()["after"] == spelled
    assert entry.record.model_dump()["ranks"] == (spelled,)
    assert through_text(entry) == entry


def test_line_names_the_command_it_is_about() -> None:
    lines = [Entry(seq=1, time="t", record=record).line() for record in every_record()]
    about = [line for line in lines if line["type"] in ("CommandAccepted", "CommandSettled", "CommandRepeated")]
    assert about
    assert all(line["uuid"] and line["status"] for line in about)
    assert all("type" not in line["body"] for line in lines)


def test_line_of_an_accepted_command_says_what_it_asks() -> None:
    for number, body in enumerate(EVERY_INTENT, start=1):
        line = Entry(seq=1, time="t", record=CommandAccepted(command=command(number, **body))).line()
        given = {key: value for key, value in body.items() if key != "kind"}
        assert (line["uuid"], line["status"], line["command"]) == (str(uuid(number)), "accepted", body["kind"])
        # An intent that leaves a field open leaves it out; one that gives a nested object has its defaults spelled out.
        assert {key: line["arguments"][key] for key in given if key not in NESTED} == {
            key: value for key, value in given.items() if key not in NESTED
        }
        assert None not in line["arguments"].values()


def test_later_lines_about_a_command_say_again_what_it_asks() -> None:
    asked = CommandIndex()
    first = asked.complete(Entry(seq=1, time="t", record=accepted(1, "stop", save=True)))
    for record in (settled(1), repeated(1)):
        entry = asked.complete(Entry(seq=2, time="t", record=record))
        line = entry.line()
        assert (line["command"], line["arguments"]) == ("stop", {"save": True})
        assert (first.line()["command"], first.line()["arguments"]) == ("stop", {"save": True})
        assert through_text(entry) == entry


def test_later_lines_about_an_unknown_command_say_what_they_know() -> None:
    entry = CommandIndex().complete(Entry(seq=2, time="t", record=settled(7)))
    assert entry.about is None
    assert "command" not in entry.line()


@pytest.mark.parametrize("extra", [{"command": 7}, {"command": "stop"}, {"arguments": []}, {"colour": "red"}], ids=str)
def test_line_with_strange_keys_beside_the_body_is_read_without_them(extra: dict[str, object]) -> None:
    for record in every_record():
        entry = Entry(seq=1, time="t", record=record)
        line = entry.line()
        line.pop("arguments", None)
        assert Entry.from_line(line | extra) == entry


@pytest.mark.parametrize("key", ["seq", "time", "type", "body"])
def test_line_without_a_key_is_refused(key: str) -> None:
    for record in every_record():
        line = Entry(seq=1, time="t", record=record).line()
        del line[key]
        with pytest.raises(ValidationError):
            Entry.from_line(line)


@pytest.mark.parametrize(
    "change",
    [{"seq": 0}, {"seq": -1}, {"type": "Nonsense"}, {"type": None}, {"body": []}, {"body": None}, {"body": {"x": 1}}],
    ids=str,
)
def test_line_that_is_not_ours_is_refused(change: dict[str, object]) -> None:
    line = Entry(seq=1, time="t", record=settled(1)).line()
    with pytest.raises(ValidationError):
        Entry.from_line(line | change)


def test_record_with_an_unknown_key_is_refused() -> None:
    line = Entry(seq=1, time="t", record=settled(1)).line()
    line["body"]["colour"] = "red"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Entry.from_line(line)
