"""Settings of generators: a function or a prompt, for a live source that is there."""

from typing import Any

import pytest
from pydantic import ValidationError

from control_plane.core.model.data import SourceSettings
from control_plane.core.rules.agent.generating import GeneratorSettings, author_of, reason_against_generators

GOOD = {"source": "fresh", "path": "write.py", "max_records": 10}


def sources(**more: Any) -> dict[str, SourceSettings]:
    base = {"format": "jsonl", "fields": {"text": "text"}, "live": True, "held_out": 0.1} | more
    return {"fresh": SourceSettings.model_validate(base), "web": SourceSettings(format="text", path="web.txt")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "Poems."},
        {"path": None},
        {"max_records": 0},
        {"records": 10**9},
        {"function": "os.system"},
        {"source": "../x"},
        {"every_steps": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    GeneratorSettings.model_validate(GOOD)
    with pytest.raises(ValidationError):
        GeneratorSettings.model_validate(GOOD | wrong)


@pytest.mark.parametrize(
    ("settings", "of_source", "reason"),
    [
        ({"source": "web"}, {}, "no source of that name is 'live: true'"),
        ({"source": "none"}, {}, "no source of that name is 'live: true'"),
        ({"helps": ["web", "none"]}, {}, "helps names none, which is no source"),
        ({}, {"held_out": 0.0}, "need a source with 'held_out'"),
        ({}, {"format": "images", "fields": {}}, "cannot be generated"),
    ],
)
def test_sources_that_do_not_fit_are_named(settings: dict[str, Any], of_source: dict[str, Any], reason: str) -> None:
    made = {"fill": GeneratorSettings.model_validate(GOOD | settings)}
    assert reason in (reason_against_generators(made, sources(**of_source)) or "")


def test_good_ones_have_no_reason_against_them_and_an_author() -> None:
    assert reason_against_generators({"fill": GeneratorSettings.model_validate(GOOD)}, sources()) is None
    assert reason_against_generators({}, {}) is None
    assert author_of("fill") == "generator:fill"
