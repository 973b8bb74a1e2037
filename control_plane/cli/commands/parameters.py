"""`steer freeze`, `unfreeze`, `reset`, `skip`, `action`: parameters, the data, and actions of the training script."""

import math
from typing import Annotated, Any

import typer

from control_plane.cli.commands.lifecycle import RunIntent, build_intent, run_and, steering_command
from control_plane.cli.errors import UsageError

Parameters = Annotated[
    list[str], typer.Argument(metavar="[RUN] PATTERN", help="Pattern of parameter names, e.g. 'transformer.h.0.*'")
]


@steering_command
def freeze(words: Parameters) -> RunIntent:
    """Freeze the parameters whose names match a pattern: they are no longer trained."""
    run, pattern = run_and(words, "a pattern of parameter names", "steer freeze RUN 'transformer.h.0.*'")
    return run, build_intent("freeze", parameters=pattern)


@steering_command
def unfreeze(words: Parameters) -> RunIntent:
    """Unfreeze the parameters whose names match a pattern: they are trained again."""
    run, pattern = run_and(words, "a pattern of parameter names", "steer unfreeze RUN 'transformer.h.0.*'")
    return run, build_intent("unfreeze", parameters=pattern)


@steering_command
def reset(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] PATTERN", help="Pattern of module names, e.g. lm_head or 'transformer.h.3.*'"),
    ],
    seed: Annotated[int, typer.Option(help="Seed of the new weights, combined with each module's name.")] = 0,
) -> RunIntent:
    """Reinitialize the weights of the modules whose names match a pattern, identically on every rank."""
    run, pattern = run_and(words, "a pattern of module names", "steer reset RUN lm_head --seed 7")
    return run, build_intent("reset_parameters", modules=pattern, seed=seed)


@steering_command
def skip(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] N", help="Number of samples over all ranks, rounded up to whole global batches."),
    ],
) -> RunIntent:
    """Leave out the next N samples of the training data, on every rank. The number of steps stays."""
    run, count = run_and(words, "a number of samples", "steer skip RUN 2048")
    if not count.isdecimal():
        raise UsageError(f"{count!r} is no number of samples: steer skip RUN 2048")
    return run, build_intent("skip_samples", samples=int(count))


@steering_command
def action(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] NAME [KEY=VALUE]...", help="Action registered by the script, and its arguments."),
    ],
) -> RunIntent:
    """Run an action that the training script has registered, on every rank."""
    named = [word for word in words if "=" not in word]
    run, name = run_and(named, "an action", "steer action RUN reshuffle seed=7")
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in arguments:
            raise UsageError(f"argument {key} is given twice")
        if equals:
            arguments[key] = _scalar(value)
    return run, build_intent("run_action", name=name, arguments=arguments)


def _scalar(text: str) -> bool | int | float | str:
    """Parse `true`, `7` or `0.5`; any other text stays text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        amount = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text
    return amount if math.isfinite(amount) else text
