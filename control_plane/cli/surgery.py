"""What changes a model itself: freeze, unfreeze and reset parameters, and the actions of a training script."""

import math
from typing import Annotated, Any

import typer

from control_plane.cli.asking import Asked, intent_of, run_and, steering
from control_plane.cli.refusals import Misused

Parameters = Annotated[
    list[str], typer.Argument(metavar="[RUN] PATTERN", help="Names of parameters, e.g. 'transformer.h.0.*'")
]


@steering
def freeze(words: Parameters) -> Asked:
    """Keep the parameters whose names match a pattern as they are."""
    run, pattern = run_and(words, "a pattern of parameters", "steer freeze RUN 'transformer.h.0.*'")
    return run, intent_of("freeze", parameters=pattern)


@steering
def unfreeze(words: Parameters) -> Asked:
    """Train the parameters whose names match a pattern again."""
    run, pattern = run_and(words, "a pattern of parameters", "steer unfreeze RUN 'transformer.h.0.*'")
    return run, intent_of("unfreeze", parameters=pattern)


@steering
def reset(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] PATTERN", help="Names of modules, e.g. lm_head or 'transformer.h.3.*'")
    ],
    seed: Annotated[int, typer.Option(help="The fresh weights follow from it and from the modules' names.")] = 0,
) -> Asked:
    """Give the modules whose names match a pattern fresh weights, the same on every rank."""
    run, pattern = run_and(words, "a pattern of modules", "steer reset RUN lm_head --seed 7")
    return run, intent_of("reset_parameters", modules=pattern, seed=seed)


@steering
def action(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] NAME [KEY=VALUE]...", help="An action that the script has registered.")
    ],
) -> Asked:
    """Carry out an action that the training script has registered, on every rank."""
    named = [word for word in words if "=" not in word]
    run, name = run_and(named, "an action", "steer action RUN reshuffle seed=7")
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in arguments:
            raise Misused(f"{key} is given twice")
        if equals:
            arguments[key] = _scalar(value)
    return run, intent_of("run_action", name=name, arguments=arguments)


def _scalar(text: str) -> bool | int | float | str:
    """`true`, `7`, `0.5`, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        amount = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text
    return amount if math.isfinite(amount) else text
