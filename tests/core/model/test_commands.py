"""Commands: whatever is malformed or out of bounds cannot be built."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from control_plane.core.model.commands import (
    INTENT,
    MAX_FACTOR,
    MAX_LABEL_CHARS,
    MAX_LEARNING_RATE,
    MAX_REASON_CHARS,
    Command,
)
from control_plane.core.model.values import MAX_STEP
from tests.core.examples import EVERY_INTENT, command, intent, uuid


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-4, 0, -0.0, MAX_LEARNING_RATE * 1.01, 1e308])
def test_learning_rate_out_of_bounds_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        intent("set_learning_rate", value=value)


@pytest.mark.parametrize("value", [True, "0.1", "1e-4", None, [], {}, [1e-4], b"1"])
def test_learning_rate_of_a_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        intent("set_learning_rate", value=value)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1, 0, 0.99 / MAX_FACTOR, MAX_FACTOR * 1.01, True, "2"])
def test_factor_out_of_bounds_is_refused(factor: object) -> None:
    with pytest.raises(ValidationError):
        intent("set_learning_rate", factor=factor)


@pytest.mark.parametrize("value", [5e-324, 1e-4, 1, MAX_LEARNING_RATE])
def test_learning_rate_at_its_bounds_is_taken(value: float) -> None:
    assert intent("set_learning_rate", value=value).model_dump()["value"] == value


@pytest.mark.parametrize("factor", [1 / MAX_FACTOR, 1, MAX_FACTOR])
def test_factor_at_its_bounds_is_taken(factor: float) -> None:
    assert intent("set_learning_rate", factor=factor).model_dump()["factor"] == factor


@pytest.mark.parametrize("body", [{}, {"value": 1e-4, "factor": 2.0}, {"value": None, "factor": None}])
def test_learning_rate_with_both_or_neither_of_value_and_factor_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="not both and not neither"):
        INTENT.validate_python({"kind": "set_learning_rate", **body})


@pytest.mark.parametrize("group", [-1, True, 1.0, 1.5, "", "x" * (MAX_LABEL_CHARS + 1), [0], "x" * 10_000_000])
def test_group_that_is_no_index_and_no_name_is_refused(group: object) -> None:
    with pytest.raises(ValidationError):
        intent("set_learning_rate", value=1e-4, group=group)


@pytest.mark.parametrize("schedule", ["", "KEEP", "linear", None, 1])
def test_unknown_schedule_is_refused(schedule: object) -> None:
    with pytest.raises(ValidationError):
        intent("set_learning_rate", value=1e-4, schedule=schedule)


@pytest.mark.parametrize("body", EVERY_INTENT, ids=lambda body: body["kind"])
def test_unknown_key_in_an_intent_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        INTENT.validate_python({**body, "vaule": 1})


@pytest.mark.parametrize("kind", ["", "exec", "SetLearningRate", None, 1, ["pause"]])
def test_unknown_kind_of_intent_is_refused(kind: object) -> None:
    with pytest.raises(ValidationError):
        INTENT.validate_python({"kind": kind})


@pytest.mark.parametrize("body", [None, [], "pause", 1, {"kind": "stop", "save": "maybe"}])
def test_intent_of_a_wrong_type_is_refused(body: object) -> None:
    with pytest.raises(ValidationError):
        INTENT.validate_python(body)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "not-a-uuid"},
        {"uuid": None},
        {"author": ""},
        {"author": "a" * (MAX_LABEL_CHARS + 1)},
        {"author": None},
        {"reason": "r" * (MAX_REASON_CHARS + 1)},
        {"not_before_step": -1},
        {"not_before_step": MAX_STEP + 1},
        {"not_before_step": 1.5},
        {"not_before_step": True},
        {"not_before_step": "10"},
        {"priority": 1},
    ],
    ids=str,
)
def test_command_with_a_bad_field_is_refused(change: dict[str, object]) -> None:
    good = command(1).model_dump()
    assert Command.model_validate(good) == command(1)
    with pytest.raises(ValidationError):
        Command.model_validate(good | change)


def test_label_longer_than_its_limit_is_refused() -> None:
    assert intent("save_checkpoint", label="x" * MAX_LABEL_CHARS)
    with pytest.raises(ValidationError):
        intent("save_checkpoint", label="x" * (MAX_LABEL_CHARS + 1))


def test_resume_with_not_before_step_is_refused_because_a_paused_run_never_gets_there() -> None:
    with pytest.raises(ValidationError, match="never reach"):
        command(1, "resume", not_before_step=50)
    assert command(1, "resume").not_before_step is None
    assert command(1, "pause", not_before_step=50).not_before_step == 50


@pytest.mark.parametrize("body", EVERY_INTENT, ids=str)
def test_command_survives_json_unchanged(body: dict[str, object]) -> None:
    original = Command(uuid=uuid(7), author="ann", intent=INTENT.validate_python(body), reason="because")
    assert Command.model_validate(json.loads(original.model_dump_json())) == original


def test_command_that_was_built_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        command(1).author = "bob"


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("set_learning_rate", {"value": 1e-4}, "lr = 0.0001"),
        ("set_learning_rate", {"factor": 0.5, "group": 1, "schedule": "hold"}, "lr x 0.5 (group 1, hold)"),
        ("set_learning_rate", {"factor": 1.0000001}, "lr x 1.0000001"),
        ("set_knobs", {"changes": [{"knob": "x", "factor": 1 - 1e-12}]}, "x x 0.999999999999"),
        ("save_checkpoint", {}, "save checkpoint"),
        ("pause", {}, "pause"),
    ],
)
def test_describe_says_it_in_a_few_words(kind: str, body: dict[str, Any], words: str) -> None:
    assert command(1, kind, **body).describe() == words
