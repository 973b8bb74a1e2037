"""Settings of `training`: which ones Steerway sets itself, and the check against the installed TrainingArguments."""

import difflib
from enum import EnumType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter, ValidationError

from control_plane.config_text import shown
from control_plane.core.model.errors import Invalid

if TYPE_CHECKING:
    from ray_jobs.config.run_config import RunConfig

# Settings of TrainingArguments that Steerway sets itself, and the setting to use instead.
_OWN_CHECKPOINTS = "Steerway saves the checkpoints, see checkpoint.every_steps"
_OWN_DEVICE = "Steerway chooses the devices, see scaling.use_gpu"
_OWN_PLACE = "the run's folder is chosen when it is submitted"
_OWN_REPORT = "metrics go to the run's own store"
_OWN_HUB = "a run uploads nothing"
OWN_TRAINING_KEYS: dict[str, str] = {
    "output_dir": _OWN_PLACE,
    "run_name": "use the top-level key name",
    "deepspeed": "use the top-level key deepspeed",
    "seed": "use the top-level key seed",
    "data_seed": "the top-level key seed determines the order of the samples",
    "report_to": _OWN_REPORT,
    "disable_tqdm": _OWN_REPORT,
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_only_model"), _OWN_CHECKPOINTS),
    **dict.fromkeys(("save_on_each_node", "enable_jit_checkpoint", "load_best_model_at_end"), _OWN_CHECKPOINTS),
    **dict.fromkeys(("resume_from_checkpoint", "ignore_data_skip"), "a run resumes from its newest checkpoint"),
    **dict.fromkeys(("use_cpu", "ddp_backend", "local_rank", "parallelism_config"), _OWN_DEVICE),
    **dict.fromkeys(("fsdp", "fsdp_config"), "DeepSpeed shards the model, see deepspeed.zero_optimization"),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id", "hub_strategy"), _OWN_HUB),
    "auto_find_batch_size": "a batch size that changes on one rank only would make the others hang",
}


def check_training_keys(config: "RunConfig") -> None:
    """Raise `Invalid` for settings that the installed TrainingArguments does not take. Imports transformers."""
    from transformers import TrainingArguments

    hints = {name: field.type for name, field in TrainingArguments.__dataclass_fields__.items() if field.init}
    own = sorted(set(hints) - set(OWN_TRAINING_KEYS))
    problems = []
    for key, value in config.training.items():
        if key not in own:
            nearest = difflib.get_close_matches(key, own, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "see the documentation of TrainingArguments."
            problems.append(f"training.{key} is not a key of transformers.TrainingArguments; {hint}")
        elif not _fits(hints[key], value):
            problems.append(
                f"training.{key} is {shown(value)}, but TrainingArguments takes {_type_name(hints[key])}{_hint(value)}."
            )
    if problems:
        raise Invalid("\n".join(f"{config.name}: {problem}" for problem in problems))


_SPELLED = ("no", "off", "n", "false", "yes", "on", "y", "true")
"""Truth values in quotes. They would be passed on as text, and any text counts as true."""


def _fits(hint: Any, value: object) -> bool:
    """Return whether a value has the argument's type, without coercion: it is passed on as it is."""
    if isinstance(value, str) and (choices := _choices(hint)):
        return value in choices
    if isinstance(value, str) and bool in get_args(hint) and value != "no" and value.lower() in _SPELLED:
        return False  # text or a truth value: "no" is a word of its own there
    try:
        TypeAdapter(hint).validate_python(value, strict=not isinstance(value, list))
    except ValidationError:
        return False
    return True


def _hint(value: object) -> str:
    """Return a hint on how to write a value that was given as text, or ''."""
    if not isinstance(value, str):
        return ""
    if value.lower() in _SPELLED:
        return "; write true or false"
    return "; write numbers without quotes" if value[:1] in "0123456789+-." and value else ""


def _choices(hint: Any) -> list[str]:
    """Return the allowed values of an enum argument. Its annotation, `SchedulerType | str`, would allow any text."""
    kinds: list[Any] = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, EnumType)]
    return [str(member.value) for kind in kinds for member in kind]


def _type_name(hint: Any) -> str:
    choices = _choices(hint)
    return f"one of {', '.join(choices)}" if choices else getattr(hint, "__name__", str(hint))
