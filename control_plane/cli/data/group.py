"""`steer data`: the group of its commands, those that change the mixture, and those that add and remove sources."""

from typing import Annotated, Any

import typer

from control_plane.cli.commands.lifecycle import (
    RunIntent,
    Yes,
    build_intent,
    check_can_ask,
    confirm,
    steering_command,
)
from control_plane.cli.data import records, weak
from control_plane.cli.errors import SteerGroup, UsageError

data = typer.Typer(
    cls=SteerGroup,
    name="data",
    no_args_is_help=True,
    help="The sources of a run's data: add records while it trains, and change how much is drawn of each.",
)

Words = Annotated[
    list[str], typer.Argument(metavar="[RUN] SOURCE=WEIGHT...", help="New weights, as web=0.7 fresh=0.3.")
]
Named = Annotated[str, typer.Argument(help="Name of the source.")]
OfRun = Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")]


@steering_command
def weights(words: Words) -> RunIntent:
    """Set the weights of sources: the share of each is in proportion to its weight, from the next step on."""
    runs = [word for word in words if "=" not in word]
    if len(runs) > 1 or len(runs) == len(words):
        raise UsageError("expected weights, with an optional run before them: steer data weights RUN web=0.7 fresh=0.3")
    given: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            continue
        if name in given:
            raise UsageError(f"source {name} is given twice")
        given[name] = _number(name, value)
    return (runs[0] if runs else None), build_intent("set_mixture", weights=given)


@steering_command
def add_source(
    run: OfRun,
    source: Named,
    format: Annotated[str, typer.Option("--format", help="jsonl, text, arrays, parquet or images.")] = "jsonl",
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=TYPE", help="Field of a record: text, integer, number or boolean."),
    ] = None,
    weight: Annotated[float, typer.Option(min=0.0, help="Its weight in the mixture.")] = 1.0,
    exhausted: Annotated[str, typer.Option(help="When every record has been drawn: repeat, or stop.")] = "repeat",
) -> RunIntent:
    """Add a live source, which begins empty: `steer data add` fills it. Arrays are declared in a config only."""
    schema = dict(_field(word) for word in fields or ())
    settings: dict[str, Any] = {"format": format, "live": True, "weight": weight, "exhausted": exhausted}
    return run, build_intent("add_source", source=source, settings=settings | ({"fields": schema} if schema else {}))


@steering_command
def remove_source(run: OfRun, source: Named, yes: Yes = False) -> RunIntent:
    """Remove a source from the mixture, with all its shards. The files stay."""
    check_can_ask(yes, f"nothing is drawn from {source} any more")
    confirm(yes, f"Remove source {source} from the mixture?", "nothing was removed")
    return run, build_intent("remove_source", source=source)


@steering_command
def split(
    run: OfRun,
    source: Named,
    into: Annotated[str, typer.Option(metavar="NEW", help="Name of the new source.")],
    shards: Annotated[list[str], typer.Option("--shard", metavar="SHA256", help="Shard to move; may be repeated.")],
    weight: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the new source. Default: its part of the records.")
    ] = None,
) -> RunIntent:
    """Move shards of a source into a new one, which then has a weight of its own."""
    return run, build_intent("split_source", source=source, into=into, shards=shards, weight=weight)


@steering_command
def withdraw(
    run: OfRun,
    source: Named,
    shard: Annotated[str, typer.Argument(metavar="SHA256", help="The shard, as `steer data show --json` prints it.")],
    rows: Annotated[
        list[int] | None, typer.Option("--row", min=0, metavar="ROW", help="A record of it, from 0. Default: all.")
    ] = None,
) -> RunIntent:
    """Withdraw records: they are not drawn any more. What the model has learned from them stays."""
    return run, build_intent("withdraw_samples", source=source, shard=shard, rows=rows or "all")


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{value!r} is no weight of {name}: use a number like 0.7") from None


def _field(word: str) -> tuple[str, str]:
    name, equals, kind = word.partition("=")
    if not equals or not name or not kind:
        raise UsageError(f"{word!r} is no field: use NAME=TYPE, as text=text or stars=integer")
    return name, kind


data.command("show")(records.show)
data.command("add")(records.add)
data.command("weak")(weak.weak)
data.command("weights")(weights)
data.command("add-source")(add_source)
data.command("remove-source")(remove_source)
data.command("split")(split)
data.command("withdraw")(withdraw)
