"""`steer data add` and `steer data show`: send a file of records, and look at the sources."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.commands.show import AsJson, Run, print_table
from control_plane.cli.output.printing import say, show_progress, tell, tell_json
from control_plane.cli.select_run import active_run, any_run, connect
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import Refused, Unavailable

if TYPE_CHECKING:
    from control_plane.api.data_views import Ingested, ShardView, SourceView
    from control_plane.client import SteerwayClient

LOOK_EVERY_S = 0.5
LARGE_BYTES = 4 * 1024 * 1024
SHARDS_SHOWN = 5


def add(
    run: Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")],
    source: Annotated[str, typer.Argument(help="Name of the live source.")],
    file: Annotated[Path, typer.Argument(help="File with records: .jsonl, .json, .txt, .parquet, .npz or .zip.")],
    only_good: Annotated[
        bool, typer.Option("--only-good", help="Take in the records that fit the schema; name the others.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the records are durable.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds to wait until ranks draw from them.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Add the records of a file to a live source while the run trains. Safe to repeat: nothing comes in twice.

    Exits with 6 if a record breaks the schema (nothing is taken in), or if the ranks could not take the shard.
    """
    with connect() as client:
        chosen = active_run(client, run)
        answers = client.add_file(chosen, source, file, only_good=only_good, progress=_progress(file))
        if as_json:
            tell_json([answer.model_dump(mode="json") for answer in answers])
        else:
            tell(*map(one_line, _sums(source, answers)))
        shards = {answer.shard.sha256 for answer in answers if answer.shard is not None}
        if shards and not detach:
            _wait(client, chosen, source, shards, timeout)


def _progress(file: Path) -> Any:
    def progress(sent: int, total: int) -> None:
        if total > LARGE_BYTES:
            show_progress(f"{file.name}: {sent / 2**20:.1f} of {total / 2**20:.1f} MiB sent", sent == total)

    return progress


def _sums(source: str, answers: "list[Ingested]") -> list[str]:
    records = sum(answer.records for answer in answers)
    twice = sum(answer.duplicates for answer in answers)
    refused = sum(answer.refused_count for answer in answers)
    shards = [answer.shard.sha256[:12] for answer in answers if answer.shard is not None]
    lines = [
        f"{source}: {records:,} records taken in, as shard {', '.join(shards)}"
        if shards
        else f"{source}: no new records"
    ]
    if twice:
        lines.append(f"  {twice:,} left out: the source has them already")
    if refused:
        lines.append(f"  {refused:,} refused:")
        lines += [f"    {one.at}: {one.reason}" for answer in answers for one in answer.refused]
    return lines


def _wait(client: "SteerwayClient", run: str, source: str, shards: set[str], timeout_s: float) -> None:
    """Wait until the ranks draw from these shards. Raises `Refused` if they will not, `Unavailable` after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        view = next(one for one in client.data(run).sources if one.name == source)
        ours = [one for one in view.shards if one.sha256 in shards]
        refused = next((one for one in ours if one.stage == "refused"), None)
        if refused is not None:
            raise Refused(f"shard {refused.sha256[:12]} is durable, but not in the mixture: {refused.reason}")
        if all(one.stage == "live" for one in ours):
            step = max((one.step or 0 for one in ours), default=0)
            say(f"in the mixture from step {step} on")
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the records are durable, but no step has drawn from them within {timeout_s:g} s: is the run paused? "
                f"`steer data show {run}`"
            )
        time.sleep(LOOK_EVERY_S)


def show(run: Run = None, as_json: AsJson = False) -> None:
    """Show a run's sources: weight, share, records, losses in training and on what is held out, newest shards."""
    with connect() as client:
        found = client.data(any_run(client, run))
    if as_json:
        tell_json(found)
        return
    if not found.sources:
        tell(f"{found.run} has no sources: its config has no section 'sources'")
        return
    print_table(
        ("SOURCE", "FORMAT", "WEIGHT", "SHARE", "RECORDS", "CAME IN", "WAITING", "LOSS", "HELD OUT"),
        [_row(one) for one in found.sources],
    )
    for source in found.sources:
        for shard in source.shards[:SHARDS_SHOWN]:
            tell(one_line(_shard_line(source, shard)))


def _row(source: "SourceView") -> tuple[str, ...]:
    mixture, settings = source.mixture, source.settings
    share = mixture.get("share")
    return (
        source.name,
        f"{settings.format}{' live' if settings.live else ''}" if settings else "?",
        f"{mixture['weight']:g}" if "weight" in mixture else "-",
        f"{share:.1%}" if isinstance(share, int | float) else "-",
        f"{mixture['records']:,}" if "records" in mixture else "-",
        f"{source.received:,}",
        f"{source.waiting:,}",
        "-" if source.loss is None else f"{source.loss:.4g}",
        "-" if source.held_out_loss is None else loss_with_error(source.held_out_loss, source.held_out_error),
    )


def loss_with_error(loss: float, error: float | None) -> str:
    """Return a loss with its standard error, if that is known."""
    return f"{loss:.4g}" if error is None else f"{loss:.4g} +-{error:.2g}"


def _shard_line(source: "SourceView", shard: "ShardView") -> str:
    where = {
        "live": f"from step {shard.step} on{f', {shard.reason}' if shard.reason else ''}",
        "waiting": "waits for its command",
        "announced": "announced, waits for a step",
        "refused": f"not in the mixture: {shard.reason}",
    }[shard.stage]
    came = f"{shard.records:,} records by {shard.author} at {shard.received_at}"
    return f"  {source.name} {shard.sha256[:12]}: {came}, {where}"
