"""The run's limits on this road: initial values, overrides of limited values, and commands that a run begins with.

A command of a running run is checked by its control server. What is set before there is one is checked here, with the
role of whoever asks. Not covered: what a script makes of its arguments, and cool-downs, which begin with the run.
"""

from collections.abc import Iterator
from typing import Any

from control_plane.api.launching import Requester
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Invalid, NotAllowed
from control_plane.core.model.knobs import is_number
from control_plane.core.model.limits import limit_of, reason_against_change, reason_against_intent, reason_against_value
from control_plane.core.rules.admission import check_text
from ray_jobs.config.run_config import RunConfig

SETTINGS: dict[str, tuple[str, ...]] = {
    "lr": ("training.learning_rate", "deepspeed.optimizer.params.lr"),
    "weight_decay": ("training.weight_decay", "deepspeed.optimizer.params.weight_decay"),
    "betas": ("training.adam_beta1", "training.adam_beta2", "deepspeed.optimizer.params.betas"),
    "eps": ("training.adam_epsilon", "deepspeed.optimizer.params.eps"),
    "momentum": ("deepspeed.optimizer.params.momentum",),
    "gradient_clipping": ("training.max_grad_norm", "deepspeed.gradient_clipping"),
    "total_steps": ("training.max_steps",),
    "logging_steps": ("training.logging_steps",),
    "eval_steps": ("training.eval_steps",),
    "checkpoint_steps": ("checkpoint.every_steps",),
    "dropout": ("model.dropout",),
}
"""By knob: the settings of a config that hold its initial value."""


def check_initial_values(config: RunConfig) -> None:
    """Raise `Invalid` if an initial value is outside the config's own limits."""
    for knob, key, value in _values(config):
        limit = limit_of(config.limits, knob)
        if limit is not None and (reason := reason_against_value(config.limits, knob, value, value)):
            raise Invalid(f"{config.name}: {key} is outside the config's own limits: {reason}")


def check_overrides(before: RunConfig, after: RunConfig, by: Requester) -> None:
    """Check a fork's config against the limits of its parent.

    Raises `NotAllowed` if the role may not change a limited value, or the limits; `Invalid` for a value beyond them.
    """
    if before.limits != after.limits and by.role != "admin":
        raise NotAllowed("only an admin may change the section limits in a fork", role=by.role)
    known = {key: value for _, key, value in _values(before)}
    for knob, key, value in _values(after):
        if known.get(key) == value:
            continue
        if by.role != "admin" or before.limits == after.limits:
            if reason := reason_against_change(after.limits, knob, by.role):
                raise NotAllowed(f"the override of {key} is not allowed: {reason}", role=by.role)
            if reason := reason_against_value(after.limits, knob, known.get(key, value), value):
                raise Invalid(f"the override of {key} is beyond the run's limits: {reason}")
    check_initial_values(after)


def check_first(config: RunConfig, command: Command) -> None:
    """Raise `Invalid` if a command that a fork begins with is beyond the fork's limits."""
    check_text(command)
    for part in command.intent.parts():
        if reason := reason_against_intent(config.limits, part, command.role, {}):
            raise Invalid(reason)


def _values(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    """Yield (knob, setting, value) for each initial value in the config that is a number or a list of numbers."""
    raw = config.model_dump(mode="json")
    for knob, keys in SETTINGS.items():
        for key in keys:
            value: Any = raw
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if is_number(value) or (isinstance(value, list) and value and all(map(is_number, value))):
                yield knob, key, value
