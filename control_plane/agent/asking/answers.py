"""Schemas of a model's answers: what may be answered depends on what was granted and on the action space.

Every answer is validated here, whether or not the endpoint keeps to the JSON schema that it is sent: an unknown action,
an unknown or repeated key, a text in place of a number is no decision. `grants.decide` checks what remains.
"""

import json
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from control_plane.agent.course import Course
from control_plane.agent.grants import Proposal, Run, Scale, SetTo
from control_plane.agent.mixing import Mix
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.core.model.commands import Evaluate, Intent, Pause, SaveCheckpoint, Stop
from control_plane.core.model.data import MAX_SOURCES, SourceName, Weight
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents import INTENT, Rollback, SetSchedule, SkipSamples
from control_plane.core.model.intents.grants import MAX_SHOWN_CHARS, Grants
from control_plane.core.model.values import MAX_ARGUMENTS, MAX_STEP, Finite, KnobValue, Scalar

MAX_ANSWER_BYTES = 64 * 1024
"""A decision takes a few hundred bytes; the rest of a completion is bookkeeping."""

Told = Annotated[str, Field(min_length=1, max_length=MAX_SHOWN_CHARS)]
Why = Annotated[str, Field(max_length=MAX_ANSWER_BYTES)]
Count = Annotated[int, Field(ge=0, le=MAX_STEP, strict=True)]


class Answered(Protocol):
    """One kind of answer."""

    reason: str

    def proposal(self, seen: Observation) -> Proposal:
        """Return the proposal. Raises `ValueError` if it is none."""
        ...


class Answer(Message):
    """Schema of the answer in the published action space; any other key is rejected."""

    action: AgentAction
    reason: Why

    def proposal(self, seen: Observation) -> Proposal:
        return Decision(self.action, self.reason)


class _Tuned(Message):
    action: Literal["double", "halve", "keep"]
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Decision(AgentAction(self.action), self.reason)


class _Scaled(Message):
    action: Literal["scale"]
    knob: Told
    factor: Finite
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Scale(self.knob, self.factor, self.reason)


class _Set(Message):
    action: Literal["set"]
    knob: Told
    value: KnobValue
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return SetTo(self.knob, self.value, self.reason)


class _Ran(Message):
    action: Literal["run"]
    name: Told
    arguments: dict[Told, Scalar] = Field(default={}, max_length=MAX_ARGUMENTS)
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Run(self.name, self.arguments, self.reason)


class _Plain(Message):
    action: Literal["evaluate", "save_checkpoint", "pause", "stop"]
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        plain: dict[str, Intent] = {
            "evaluate": Evaluate(),
            "save_checkpoint": SaveCheckpoint(),
            "pause": Pause(),
            "stop": Stop(save=True),
        }
        return Course(plain[self.action], self.reason)


class _Scheduled(Message):
    action: Literal["set_schedule"]
    shape: Literal["constant", "linear", "cosine"]
    end: Annotated[Finite, Field(ge=0, le=1)] = 0.0
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Course(SetSchedule(shape=self.shape, end=float(self.end)), self.reason)


class _RolledBack(Message):
    action: Literal["rollback"]
    step: Count
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        named = next((each.name for each in seen.checkpoints if each.step == self.step), None)
        if named is None:
            raise ValueError("no checkpoint of this step was listed")
        return Course(Rollback(checkpoint=named), self.reason)


class _Skipped(Message):
    action: Literal["skip_samples"]
    samples: Count
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Course(SkipSamples(samples=self.samples), self.reason)


class _Mixed(Message):
    action: Literal["set_mixture"]
    weights: dict[SourceName, Weight] = Field(min_length=1, max_length=MAX_SOURCES)
    reason: Why = ""

    def proposal(self, seen: Observation) -> Proposal:
        return Mix(self.weights, self.reason)


class Opinion(Message):
    """Schema of a second opinion."""

    agree: Annotated[bool, Field(strict=True)]
    reason: Why = ""


_Granted = _Tuned | _Scaled | _Set | _Ran
_Whole = _Granted | _Plain | _Scheduled | _RolledBack | _Skipped
GRANTED: TypeAdapter[Any] = TypeAdapter(Annotated[_Granted, Field(discriminator="action")])
WHOLE: TypeAdapter[Any] = TypeAdapter(Annotated[_Whole, Field(discriminator="action")])
GRANTED_MIXED: TypeAdapter[Any] = TypeAdapter(Annotated[_Granted | _Mixed, Field(discriminator="action")])
WHOLE_MIXED: TypeAdapter[Any] = TypeAdapter(Annotated[_Whole | _Mixed, Field(discriminator="action")])
PUBLISHED: TypeAdapter[Any] = TypeAdapter(Answer)

ACTIONS = ("double", "halve", "keep")
GRANTED_ACTIONS = ("scale", "set", "run")
COURSE_ACTIONS = ("evaluate", "save_checkpoint", "pause", "stop", "set_schedule", "rollback", "skip_samples")
MIXTURE_ACTIONS = ("set_mixture",)


def adapter_of(seen: Observation, grants: Grants) -> TypeAdapter[Any]:
    """Return the schema of the answers that are allowed now."""
    if seen.kinds:
        return WHOLE_MIXED if seen.weight_limits else WHOLE
    if seen.weight_limits:
        return GRANTED_MIXED
    return GRANTED if grants.widen or seen.factor is not None else PUBLISHED


def actions_of(seen: Observation, grants: Grants) -> tuple[str, ...]:
    """Return the names of the actions that are allowed now."""
    granted = GRANTED_ACTIONS if grants.widen else ("scale",) if seen.factor is not None else ()
    mixed = MIXTURE_ACTIONS if seen.weight_limits else ()
    return ACTIONS + granted + (COURSE_ACTIONS if seen.kinds else ()) + mixed


def json_schema_of(seen: Observation, grants: Grants) -> dict[str, Any]:
    """Return the JSON schema that the endpoint is asked to keep to: one flat object, as small endpoints take it."""
    number, text = {"type": "number"}, {"type": "string"}
    optional: dict[str, Any] = {}
    actions = actions_of(seen, grants)
    if "scale" in actions:
        optional |= {"knob": text, "factor": number}
    if grants.widen:
        optional |= {"value": {}, "name": text, "arguments": {"type": "object"}}
    if seen.kinds:
        shapes = {"type": "string", "enum": ["constant", "linear", "cosine"]}
        optional |= {"shape": shapes, "end": number, "step": {"type": "integer"}, "samples": {"type": "integer"}}
    if seen.weight_limits:
        optional |= {"weights": {"type": "object", "additionalProperties": number}}
    return {
        "type": "object",
        "properties": {"action": {"type": "string", "enum": list(actions)}, "reason": text} | optional,
        "required": ["action", "reason"],
        "additionalProperties": False,
    }


OPINION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"agree": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["agree", "reason"],
    "additionalProperties": False,
}


def parse_proposal(text: str, seen: Observation, grants: Grants, mask: Any = lambda value: value) -> Proposal:
    """Return the proposal in an answer. Raises `ValueError` (also as `ValidationError`) or `RecursionError`.

    Args:
        mask: takes the answer's values and returns them without the API key.
    """
    check_no_key_twice(text)
    adapter = adapter_of(seen, grants)
    answer = adapter.validate_json(text)
    proposal: Proposal = adapter.validate_python(mask(answer.model_dump())).proposal(seen)
    if isinstance(proposal, Course):
        INTENT.validate_python(proposal.intent.model_dump())
    return proposal


def check_no_key_twice(text: str | bytes) -> None:
    """Raise `ValueError` for duplicate keys in this JSON, which parsers resolve differently."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    json.loads(text, object_pairs_hook=once)


UNREADABLE = (ValidationError, ValueError, RecursionError)
"""What `parse_proposal` and pydantic raise for an answer that is none."""
