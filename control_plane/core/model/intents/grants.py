"""Grants of an agent: the knobs and actions that its operator allows beside the learning rate, with their bounds.

    knobs:
      lr: {max_factor: 2, min: 1e-5, max: 1e-3, cool_down_steps: 50}
      reward/goal: {max_factor: 1.5, max: 5}
    actions:
      reshuffle: {}
      move_goal: {row: {min: 0, max: 7}, slow: {}}
    watch: [return]

An action's arguments are granted one by one: a number with both `min` and `max`, or a boolean. Arguments that are not
granted may not be given and are not shown to the model. `actions: [reshuffle]` grants actions without arguments.
"""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_FACTOR

MAX_SHOWN_CHARS = 60
"""Names are shown to the model as quoted data: too short for a prompt injection."""

MAX_KNOBS, MAX_ACTIONS, MAX_WATCHED = 12, 6, 6
MAX_ARGUMENTS_GRANTED = 6
MAX_ARGUMENT_CHARS = 30


def is_showable(name: str) -> bool:
    """Return whether a name may appear in a prompt: short, printable, one line."""
    return 0 < len(name) <= MAX_SHOWN_CHARS and name.isprintable()


class KnobGrant(Message):
    """Grant of one knob: its bounds, cool-down, and largest factor per change."""

    max_factor: float = Field(default=2.0, ge=1, le=MAX_FACTOR, allow_inf_nan=False)
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    cool_down_steps: int = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> "KnobGrant":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is greater than max {self.max:g}")
        return self


class ArgumentGrant(Message):
    """Grant of an action's argument: a number needs both bounds, a boolean none."""

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _both_or_none_and_min_is_not_above_max(self) -> "ArgumentGrant":
        if (self.min is None) != (self.max is None):
            raise ValueError("a number needs both min and max; a boolean needs neither")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is greater than max {self.max:g}")
        return self


Arguments = Annotated[dict[str, ArgumentGrant], Field(max_length=MAX_ARGUMENTS_GRANTED)]


class Grants(Message):
    """Grants of an agent. Empty: it may only double or halve the learning rate."""

    knobs: dict[str, KnobGrant] = Field(default={}, max_length=MAX_KNOBS)
    actions: dict[str, Arguments] = Field(default={}, max_length=MAX_ACTIONS)
    watch: tuple[str, ...] = Field(default=(), max_length=MAX_WATCHED)

    @field_validator("actions", mode="before")
    @classmethod
    def _names_alone_grant_no_arguments(cls, actions: object) -> object:
        listed = isinstance(actions, list | tuple) and all(isinstance(name, str) for name in actions)
        return {name: {} for name in actions} if listed else actions  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _names_can_be_shown(self) -> "Grants":
        for name in (*self.knobs, *self.actions, *self.watch):
            if not is_showable(name):
                raise ValueError(
                    f"the name {name[:MAX_SHOWN_CHARS]!r} is not 1 to {MAX_SHOWN_CHARS} printable characters"
                )
        for name in (name for arguments in self.actions.values() for name in arguments):
            if not (name.isascii() and name.isidentifier() and len(name) <= MAX_ARGUMENT_CHARS):
                raise ValueError(
                    f"{name[:MAX_ARGUMENT_CHARS]!r} is not an argument name: expected at most {MAX_ARGUMENT_CHARS} "
                    "letters, digits and underscores"
                )
        return self

    @property
    def widen(self) -> bool:
        """Return whether any knob or action was granted."""
        return bool(self.knobs or self.actions)


NO_GRANTS = Grants()
