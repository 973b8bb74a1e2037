"""Reflexes: commands that a run's config lets answer an alert without a person.

    reflexes:
      non_finite: [rollback trusted, "lr*=0.5", skip_samples 200]
      gradient_spike: clip
      critical: {do: pause, budget: 1}

The key is a kind of alert, or `critical` for every critical alert of a kind that has no reflex of its own. One reflex
is one command: after `rollback trusted` the others are the initial changes of the new branch.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from control_plane.core.model.health import AlertKind
from control_plane.core.model.intent_base import LEARNING_RATE, BaseIntent
from control_plane.core.model.intents import INTENT
from control_plane.core.model.values import MAX_FIRST

CRITICAL = "critical"
"""Key of the reflex for critical alerts of any other kind."""

ReflexName = AlertKind | Literal["critical"]

ROLLBACK, CLIP = "rollback trusted", "clip"
ALONE = ("pause", "stop", "evaluate", "save")
ACTIONS = f"{ROLLBACK}; KNOB=VALUE; KNOB*=FACTOR; skip_samples N; {CLIP}; {'; '.join(ALONE)}"

_ASSIGNMENT = re.compile(r"^(?P<knob>[A-Za-z_][^\s=*]*)\s*(?P<by>\*?=)\s*(?P<value>\S+)$")
_SKIP = re.compile(r"^skip_samples\s+(?P<samples>[0-9]{1,10})$")
_SAVE = {"save": "save_checkpoint"}


class Reflex(BaseModel):
    """Answer to the alerts of one kind, with its budget and its cool-down.

    `budget` counts over the whole run. `cool_down_steps` are steps trained since it last acted, on the branch that is
    trained now. With `save_first` a checkpoint is saved before the command. `clip` lowers `gradient_clipping` by the
    formula of ZClip (arXiv 2504.02507), mean + z_threshold * deviation / (z / z_threshold), and puts the value back
    `clip_steps` steps later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    do: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_FIRST + 1)]
    budget: int = Field(default=3, ge=1, le=1000)
    cool_down_steps: int = Field(default=100, ge=0, le=2**31)
    save_first: bool = False
    z_threshold: float = Field(default=2.5, gt=0, le=100, allow_inf_nan=False)
    clip_steps: int = Field(default=200, ge=1, le=2**31)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        """Take `clip` and `[rollback trusted, ...]` for `{do: ...}`."""
        if isinstance(given, str | list | tuple):
            given = {"do": given}
        if isinstance(given, Mapping) and isinstance(given.get("do"), str):
            given = {**given, "do": (given["do"],)}
        return given

    @model_validator(mode="after")
    def _is_one_command(self) -> "Reflex":
        changes = [action for action in self.do if action != ROLLBACK]
        if ROLLBACK in self.do[1:]:
            raise ValueError(f"{ROLLBACK!r} comes first: what follows are the changes that the new branch begins with")
        for action in changes:
            _ = action == CLIP or intent_of(action)
        if self.rolls_back:
            wrong = [action for action in changes if action in (CLIP, *ALONE)]
            if wrong:
                raise ValueError(f"{wrong[0]!r} cannot follow {ROLLBACK!r}; KNOB=VALUE, KNOB*=FACTOR, skip_samples can")
        elif len(changes) != 1:
            raise ValueError(f"a reflex is one command: give one action, or begin with {ROLLBACK!r}")
        return self

    @property
    def rolls_back(self) -> bool:
        """True if it is a rollback to the newest trusted checkpoint."""
        return self.do[0] == ROLLBACK

    @property
    def clips(self) -> bool:
        """True if it limits the gradients' norm."""
        return self.do == (CLIP,)

    def changes(self) -> tuple[BaseIntent, ...]:
        """Return the intents that it names, without a rollback and `clip`, which depend on the run."""
        return tuple(intent_of(action) for action in self.do if action not in (ROLLBACK, CLIP))


Reflexes = dict[ReflexName, Reflex]
REFLEXES: TypeAdapter[Reflexes] = TypeAdapter(Reflexes)


def intent_of(action: str) -> BaseIntent:
    """Return the intent of one action, such as `lr*=0.5`. Raises `ValueError` if it is none or out of bounds."""
    text = action.strip()
    try:
        if text in ALONE:
            return INTENT.validate_python({"kind": _SAVE.get(text, text)})
        if skip := _SKIP.match(text):
            return INTENT.validate_python({"kind": "skip_samples", "samples": int(skip["samples"])})
        if assignment := _ASSIGNMENT.match(text):
            return INTENT.validate_python(_setting(assignment["knob"], assignment["by"], assignment["value"]))
    except ValidationError as error:
        raise ValueError(f"{text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    raise ValueError(f"{text!r} is no action of a reflex; there are {ACTIONS}")


def _setting(knob: str, by: str, text: str) -> dict[str, Any]:
    value: bool | int | float
    if text in ("true", "false"):
        value = text == "true"
    else:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no number, true or false") from None
        if by == "=" and knob != LEARNING_RATE and re.fullmatch(r"[-+]?[0-9]+", text):
            value = int(text)
    change = {"factor" if by == "*=" else "value": value}
    if knob == LEARNING_RATE:
        return {"kind": "set_learning_rate", **change}
    return {"kind": "set_knobs", "changes": [{"knob": knob, **change}]}
