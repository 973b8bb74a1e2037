"""`steer set`, `steer schedule` and `steer knobs`: change and list the knobs of a run."""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from control_plane.api import sentences
from control_plane.api.messages import Snapshot
from control_plane.cli.commands import show
from control_plane.cli.commands.lifecycle import RunIntent, build_intent, run_and, steering_command
from control_plane.cli.errors import UsageError
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import tell_json
from control_plane.cli.select_run import active_run, any_run, connect
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import NotFound
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.limits import Limit, limit_of

ALIASES = {"learning_rate": LEARNING_RATE}
EXAMPLES = "for example: steer set RUN lr=1e-4, or: steer set 'lr*=0.5', or: steer set weight_decay=0.1 betas=0.9,0.95"


@steering_command
def set_knobs(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] KNOB=VALUE...", help="lr=1e-4, lr*=0.5 or lr=x0.5, weight_decay=0.1 betas=0.9,0.95"
        ),
    ],
    group: Annotated[str | None, typer.Option(help="Change one parameter group only, by index or name.")] = None,
    factor: Annotated[
        bool, typer.Option("--factor", help="Multiply the current values instead of replacing them.")
    ] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Hold the learning rate constant instead of following the schedule.")
    ] = False,
) -> RunIntent:
    """Change the learning rate or other knobs of a run while it trains: all at one step, or none."""
    assignments = [word for word in words if "=" in word]
    runs = [word for word in words if "=" not in word]
    if not assignments or len(runs) > 1:
        raise UsageError(f"expected one or more KNOB=VALUE, with an optional run before them, {EXAMPLES}")
    run = runs[0] if runs else None
    intent, names = change_of(assignments, group, factor, hold)
    return (run if names == [LEARNING_RATE] else _known_to_the_run(run, names)), intent


def change_of(assignments: list[str], group: str | None, factor: bool, hold: bool) -> tuple[Intent, list[str]]:
    """Return the intent that makes these changes, and the names of the knobs. Raises `UsageError`, `Invalid`."""
    changes = [parse_assignment(word, group, factor) for word in assignments]
    names = [change["knob"] for change in changes]
    if names == [LEARNING_RATE]:
        (change,) = changes
        del change["knob"]
        return build_intent("set_learning_rate", schedule="hold" if hold else "keep", **change), names
    if hold:
        raise UsageError("--hold applies to the learning rate only: set lr in a command of its own")
    return build_intent("set_knobs", changes=changes), names


def parse_assignment(text: str, group: str | None = None, factor: bool = False) -> dict[str, Any]:
    """Parse `lr=1e-4`, `lr*=0.5`, `lr=x0.5`, `betas=0.9,0.95` or `use_ema=true` into a change. Raises `UsageError`."""
    name, _, value = (part.strip() for part in text.partition("="))
    times = factor or name.endswith("*") or value[:1] in ("x", "X", "*")
    name, value = name.removesuffix("*").strip(), value.lstrip("xX*").strip()
    knob = ALIASES.get(name, name)
    amount = _amount(value)
    if amount is None or (isinstance(amount, bool) and (times or knob == LEARNING_RATE)):
        raise UsageError(f"{value!r} in {text!r} is not a number; {EXAMPLES}")
    chosen = int(group) if group is not None and group.isdecimal() else group
    if times or knob == LEARNING_RATE:
        amount = float(amount) if isinstance(amount, int) else amount
    return {"knob": knob, "factor" if times else "value": amount, "group": chosen}


def _amount(text: str) -> bool | int | float | tuple[float, ...] | None:
    if text in ("true", "false"):
        return text == "true"
    try:
        if "," in text:
            return tuple(float(part) for part in text.split(","))
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None


def _known_to_the_run(run: str | None, names: list[str]) -> str:
    """Return the run's id. Raises `NotFound` for an unknown knob, and suggests a similar one.

    Patterns are not checked here, nor are knobs of a run that has not reported any yet: its ranks decide.
    """
    with connect() as client:
        chosen = active_run(client, run)
        check_known(client.snapshot(chosen), names)
    return chosen


def check_known(snapshot: Snapshot, names: Iterable[str]) -> None:
    """Raise `NotFound` for an unknown knob, and suggest a similar one."""
    listed = [*snapshot.knob_facts, LEARNING_RATE]
    for name in names if snapshot.knob_facts else ():
        if name not in listed and ":" not in name:
            nearest = get_close_matches(name, listed, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise NotFound(f"run {snapshot.run} has no knob {name!r}; {hint}its knobs are {', '.join(listed)}")


@steering_command
def schedule(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] SHAPE", help="Shape of the schedule: constant, linear or cosine.")
    ],
    end: Annotated[float, typer.Option(help="Final value, as a factor of the value after the warm-up.")] = 0.0,
    warmup: Annotated[int, typer.Option(metavar="STEPS", help="Steps of linear warm-up to the peak.")] = 0,
    peak: Annotated[float, typer.Option(help="Peak, as a factor of the current value.")] = 1.0,
    over: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Steps until the final value. Default: all that remain.")
    ] = None,
) -> RunIntent:
    """Replace the rest of the learning rate schedule, starting from the current value."""
    run, shape = run_and(words, "a shape (constant, linear or cosine)", "steer schedule RUN cosine --end 0.1")
    if peak != 1.0 and not warmup:
        raise UsageError("--peak needs --warmup STEPS, the steps in which to reach it")
    return run, build_intent("set_schedule", shape=shape, end=end, warmup_steps=warmup, peak=peak, over_steps=over)


def knobs(run: show.Run = None, as_json: show.AsJson = False) -> None:
    """List the knobs of a run: value per parameter group, type, bounds, and the limits of its config."""
    with connect() as client:
        snapshot = client.snapshot(any_run(client, run))
    if as_json:
        listed = {name: _described(snapshot, name) for name in names_of(snapshot)}
        tell_json({"run": snapshot.run, "seq": snapshot.seq, "groups": _groups(snapshot), "knobs": listed})
        return
    head = ("KNOB", "VALUE", "TYPE", "BOUNDS", "LIMITS", "DESCRIPTION")
    show.print_table(head, [_row(snapshot, name) for name in names_of(snapshot)])


def names_of(snapshot: Snapshot) -> list[str]:
    """Return the names of all knobs: the learning rate, those the trainers report, and changed module knobs."""
    facts = snapshot.knob_facts
    modules = [name for name in snapshot.knobs if ":" in name and name not in facts]
    return [
        *([LEARNING_RATE] if LEARNING_RATE in snapshot.knobs and LEARNING_RATE not in facts else []),
        *facts,
        *modules,
    ]


def _row(snapshot: Snapshot, name: str) -> tuple[str, ...]:
    spec = snapshot.knob_spec(name)
    limit = limit_of(snapshot.limits, name)
    return (
        name,
        value_per_group(_value(snapshot, name), _groups(snapshot), spec.per_group),
        spec.kind,
        _between(spec.least, spec.most) or formatting.UNKNOWN,
        allowed(limit) if limit else formatting.UNKNOWN,
        sentences.clean(spec.description) or formatting.UNKNOWN,
    )


def _described(snapshot: Snapshot, name: str) -> dict[str, Any]:
    limit = limit_of(snapshot.limits, name)
    allows = {"limit": limit.model_dump(mode="json", exclude_none=True)} if limit else {}
    return {"value": _value(snapshot, name)} | dict(snapshot.knob_facts.get(name, {})) | allows


def _value(snapshot: Snapshot, name: str) -> Any:
    """Return the value as last set, or a learning rate as last measured, since its schedule moves it every step."""
    value = snapshot.knobs.get(name)
    if name != LEARNING_RATE or not isinstance(value, list):
        return value
    measured = [snapshot.latest.get("lr" if at == 0 else f"lr/{at}", math.nan) for at in range(len(value))]
    return [rate if math.isfinite(rate) else last for rate, last in zip(measured, value, strict=True)]


def _groups(snapshot: Snapshot) -> list[str]:
    return [str(name) for name in snapshot.knobs.get("groups") or []]


def value_per_group(value: Any, groups: list[str], per_group: bool) -> str:
    """Format a value: `0.1` if all groups agree, else `decay 0.1, no_decay 0`."""
    if value is None:
        return formatting.UNKNOWN
    values = [sentences.format_value([one]) for one in value] if per_group and isinstance(value, list) else []
    if len(set(values)) <= 1 or len(values) != len(groups):
        return sentences.format_value(value)
    return ", ".join(f"{name} {one}" for name, one in zip(groups, values, strict=True))


def allowed(limit: Limit) -> str:
    """Format a limit: `from 1e-06 to 0.01, at most x 10, every 30 s, operator`."""
    parts = [_between(limit.min, limit.max)]
    parts += [f"at most x {limit.max_factor:g}"] if limit.max_factor else []
    parts += [f"every {limit.cool_down_s:g} s"] if limit.cool_down_s else []
    parts += [" or ".join(limit.roles)] if limit.roles else []
    return ", ".join(part for part in parts if part)


def _between(least: float | None, most: float | None) -> str:
    bounds: Mapping[str, float | None] = {"from": least, "to": most}
    return " ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
