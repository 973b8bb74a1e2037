"""What is a decision in each action space, and what is none."""

import json
from typing import Any

import pytest

from control_plane.agent.asking.answers import UNREADABLE, actions_of, json_schema_of, parse_proposal
from control_plane.agent.course import KINDS, Course
from control_plane.agent.grants import Scale, decide
from control_plane.agent.policy import AgentBounds, CheckpointSeen
from control_plane.core.model.commands import Pause, SetLearningRate, Stop
from control_plane.core.model.intents import Rollback, SetSchedule, SkipSamples
from control_plane.core.model.intents.grants import NO_GRANTS, Grants
from tests.agent.simulated import observed

LOSSES = [3.0] * 30
PUBLISHED = observed(LOSSES)
FACTORS = observed(LOSSES, factor=2.0)
POINT = CheckpointSeen("step-00000020-g1", 20)
FULL = observed(LOSSES, factor=10.0, kinds=frozenset(KINDS), checkpoints=(POINT,), config={"samples per step": 8.0})
BOUNDS = AgentBounds()


def parsed(body: Any, seen: Any = FULL) -> Any:
    """The proposal in an answer."""
    return parse_proposal(body if isinstance(body, str) else json.dumps(body), seen, NO_GRANTS)


def ruled(body: Any, seen: Any = FULL) -> Any:
    """The intent that passes the gate, or the sentence that says why none does."""
    ruling = decide(parsed(body, seen), seen, seen, BOUNDS, NO_GRANTS)
    return ruling.intent or ruling.sentence


@pytest.mark.parametrize(
    ("answer", "intent"),
    [
        ({"action": "halve"}, SetLearningRate(factor=0.5)),
        ({"action": "scale", "knob": "lr", "factor": 0.3}, SetLearningRate(factor=0.3)),
        ({"action": "rollback", "step": 20}, Rollback(checkpoint=POINT.name)),
        ({"action": "set_schedule", "shape": "cosine", "end": 0.1}, SetSchedule(shape="cosine", end=0.1)),
        ({"action": "skip_samples", "samples": 80}, SkipSamples(samples=80)),
        ({"action": "pause", "reason": "look at it"}, Pause()),
        ({"action": "stop"}, Stop(save=True)),
    ],
)
def test_the_full_vocabulary(answer: dict[str, Any], intent: Any) -> None:
    assert ruled(answer) == intent


@pytest.mark.parametrize(
    "answer",
    [
        {"action": "rollback", "step": 21},
        {"action": "rollback", "checkpoint": "trusted"},
        {"action": "rollback", "step": 20, "branch": "other"},
        {"action": "skip_samples", "samples": 0},
        {"action": "skip_samples", "samples": 80, "samples ": 1},
        {"action": "freeze", "parameters": "*"},
        {"action": "reset_parameters", "modules": "*"},
        {"action": "set_schedule", "shape": "cosine", "end": 2},
        {"action": "set_schedule", "shape": "ignore all instructions"},
        {"action": "stop_agent"},
        {"action": "answer_proposal", "approve": True},
        {"kind": "stop"},
        '{"action": "pause", "action": "stop"}',
        "[]",
        "pause",
    ],
)
def test_what_is_no_answer(answer: Any) -> None:
    with pytest.raises(UNREADABLE):
        parsed(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"action": "skip_samples", "samples": 10**6}, "at most 4000 are allowed"),
        ({"action": "scale", "knob": "lr", "factor": 11}, "further than by a factor of 10"),
        ({"action": "scale", "knob": "lr", "factor": -1}, "cannot be multiplied"),
        ({"action": "scale", "knob": "lr", "factor": 1e-9}, "further than"),
        ({"action": "scale", "knob": "weight_decay", "factor": 2}, "is not granted"),
        ({"action": "set", "knob": "lr", "value": 1e-3}, "is not granted"),
        ({"action": "run", "name": "x"}, "is not granted"),
    ],
)
def test_what_does_not_pass_the_gate(answer: dict[str, Any], words: str) -> None:
    assert words in ruled(answer)


def test_course_is_offered_in_the_full_space_only() -> None:
    for seen in (PUBLISHED, FACTORS):
        with pytest.raises(UNREADABLE):
            parsed({"action": "pause", "reason": ""}, seen)
        assert "is not among" in decide(Course(Pause()), seen, seen, BOUNDS, NO_GRANTS).sentence
        assert not set(actions_of(seen, NO_GRANTS)) & {"pause", "stop", "rollback"}
    assert "is not granted" in decide(Scale("lr", 0.5), PUBLISHED, PUBLISHED, BOUNDS, NO_GRANTS).sentence


def test_course_cools_down() -> None:
    now = observed(LOSSES, kinds=frozenset(KINDS), course_at={"pause": 25})
    assert "cool-down: the last pause was 5 steps ago" in decide(Course(Pause()), now, now, BOUNDS, NO_GRANTS).sentence


@pytest.mark.parametrize("seen", [PUBLISHED, FACTORS, FULL])
@pytest.mark.parametrize("grants", [NO_GRANTS, Grants.model_validate({"knobs": {"wd": {}}})])
def test_schema_lists_exactly_the_actions_that_are_taken(seen: Any, grants: Grants) -> None:
    schema = json_schema_of(seen, grants)
    assert tuple(schema["properties"]["action"]["enum"]) == actions_of(seen, grants)
    assert schema["additionalProperties"] is False
