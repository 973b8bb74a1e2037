"""`steer episodes`: export what a run's agents proposed, what became of it and what it did, for learning from it."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.api.messages import Point
from control_plane.cli.errors import SteerGroup, UsageError
from control_plane.cli.output.printing import ascii_json, say, tell
from control_plane.cli.select_run import any_run, connect
from control_plane.core.model.records import Entry

ENTRIES_PER_PAGE = 1000
POINTS_PER_PAGE = 5000

episodes = typer.Typer(
    cls=SteerGroup,
    name="episodes",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Episodes of agents: state, proposal, verdict and effect, one line of JSON each.",
)


@episodes.command("export")
def export(
    runs: Annotated[list[str], typer.Argument(help="Run ids, or unique prefixes or suffixes of them.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; without it, standard output.")
    ] = None,
) -> None:
    """Export the episodes of runs as JSONL, one line a proposal: its state, itself, the verdict and the effect."""
    from control_plane.agent.episodes import Episode, as_line, episodes_of, summary

    found: list[Episode] = []
    with connect() as client:
        for run in runs:
            which = any_run(client, run)
            entries: list[Entry] = []
            while page := client.journal(which, after=len(entries), limit=ENTRIES_PER_PAGE):
                entries += page
            points: list[Point] = []
            cursor = 0
            while True:
                measured = client.metrics(
                    which, after=cursor, limit=POINTS_PER_PAGE, names=("loss", "eval_loss", "lr", "grad_norm")
                )
                points += measured.points
                cursor = measured.cursor
                if len(measured.points) < POINTS_PER_PAGE:
                    break
            found += episodes_of(which, entries, points)
    lines = [as_line(episode) for episode in found]
    if out is None:
        for line in lines:
            tell(ascii_json(line))
    else:
        try:
            out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror or error}") from None
    told = ", ".join(f"{count} {what}" for what, count in summary(found).items())
    say(f"exported {told}" + (f" to {out}" if out else ""))
