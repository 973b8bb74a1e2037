"""Suggested command of an alert: a line for the `steer` command line, as an intent."""

import shlex

from pydantic import ValidationError

from control_plane.core.model.intents import INTENT, Intent, Rollback
from control_plane.core.model.reflexes import ALONE, intent_of

TRUSTED = "trusted"
"""Name that the control server replaces by that of the newest trusted checkpoint."""


def suggested_intent(line: str) -> Intent | None:
    """Return the intent of `set lr*=0.5`, `rollback trusted --set lr*=0.5`, `skip 200`, `save`, ...; None for others.

    A line that is none of these is for people to read: nothing is guessed.
    """
    try:
        match shlex.split(line):
            case ["rollback", checkpoint, *options]:
                return _rollback(checkpoint, options)
            case ["set", assignment]:
                return _intent(assignment)
            case ["skip", samples]:
                return _intent(f"skip_samples {samples}")
            case [verb] if verb in ALONE:
                return _intent(verb)
    except ValueError:
        return None
    return None


def _intent(action: str) -> Intent:
    intent: Intent = INTENT.validate_python(intent_of(action).model_dump())
    return intent


def _rollback(checkpoint: str, options: list[str]) -> Rollback | None:
    """Return a rollback whose options are `--set ASSIGNMENT` or `--skip SAMPLES`, each of them once or more."""
    flags, values = options[::2], options[1::2]
    if len(flags) != len(values) or not set(flags) <= {"--set", "--skip"}:
        return None
    first = [
        intent_of(value if flag == "--set" else f"skip_samples {value}")
        for flag, value in zip(flags, values, strict=True)
    ]
    try:
        return Rollback.model_validate({"checkpoint": checkpoint, "first": [intent.model_dump() for intent in first]})
    except ValidationError:
        return None
