"""Read-only commands: `steer runs`, `status`, `checkpoints`, `journal` and `logs`."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from control_plane.api.messages import Snapshot
from control_plane.api.sentences import format_duration
from control_plane.cli.errors import RUN_FAILED
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import tell, tell_json, tell_log
from control_plane.cli.select_run import any_run, connect
from control_plane.core.model.characters import one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.records import CommandAccepted

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

FOLLOW_WAIT_S = 20.0
LOG_POLL_S = 1.0
FOLLOWED_LOG_LINES = 1000
JOURNAL_PAGE = 1000
COMMANDS_SHOWN = 10
RECOVERIES_SHOWN = 3
ALERTS_SHOWN = 3

Run = Annotated[
    str | None,
    typer.Argument(help="Run id, or a unique prefix or suffix of it. Default: the active run, else the newest."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def runs(as_json: AsJson = False) -> None:
    """List all runs with their status and step."""
    with connect() as client:
        summaries = sorted(client.runs(), key=lambda run: run.created_at)
    if as_json:
        tell_json([run.model_dump(mode="json") for run in summaries])
        return
    rows = [
        (
            run.run,
            run.status,
            f"{run.step}/{run.total_steps or '?'}",
            str(run.world_size or "-"),
            run.created_at,
            run.owner or "-",
        )
        for run in summaries
    ]
    print_table(("RUN", "STATUS", "STEP", "RANKS", "CREATED", "OWNER"), rows)


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table with aligned columns that `awk` can split."""
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def status(
    run: Run = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep printing until the run has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: progress, learning rates, ranks, failures, latest commands. Exits with 7 if the run has failed."""
    with connect() as client:
        chosen = any_run(client, run)
        snapshot = _watch(client, chosen, as_json) if watch else client.snapshot(chosen)
    if not as_json:
        tell(*_describe(snapshot))
    elif not watch:
        tell_json(snapshot)
    if snapshot.status == "failed":
        raise typer.Exit(RUN_FAILED)


def _watch(client: "SteerwayClient", run: str, as_json: bool) -> Snapshot:
    from control_plane.cli.output.watch import JsonLines, Lines, LivePanel, follow, wants_panel

    if as_json:
        return follow(client, run, JsonLines(tell))
    if not wants_panel():
        return follow(client, run, Lines(tell))
    with LivePanel() as panel:
        return follow(client, run, panel)


def _describe(snapshot: Snapshot) -> list[str]:
    lines = [f"run         {snapshot.run}"]
    lines += [
        f"{label:<11} {value}" for label, value in formatting.progress(snapshot).items() if value != formatting.UNKNOWN
    ]
    lines += [f"owner       {snapshot.owner}"] if snapshot.owner else []
    lines.append(f"journal     {snapshot.seq} records")
    if len(snapshot.branches) > 1:
        others = ", ".join(branch.branch for branch in snapshot.branches if not branch.head)
        lines.append(f"branch      {snapshot.branch} (others: {others}; `steer tree` shows them)")
    if snapshot.restarting is not None:
        lines += [f"{label:<11} {line}" for label, line in formatting.restarting(snapshot.restarting)]
    lines += [f"attempt     {attempt.describe()}" for attempt in snapshot.attempts]
    if urgent := [view for view in snapshot.alerts if view.needs_attention]:
        lines.append(f"alerts      {len(urgent)} need attention: `steer alerts {snapshot.run}`")
        lines += [f"alert {view.seq:<5} {view.alert.level}: {view.alert.sentence}" for view in urgent[-ALERTS_SHOWN:]]
    if snapshot.reason:
        lines.append(f"reason      {snapshot.reason}")
    if snapshot.progress_age_s is not None and not snapshot.closed:
        lines.append(f"last heard  {format_duration(snapshot.progress_age_s)} ago")
    groups = snapshot.knobs.get("groups") or []
    rates = snapshot.knobs.get("lr") or []
    if isinstance(rates, list | tuple) and len(rates) > 1:
        lines += [
            f"lr group {index} ({name}): {formatting.exact(rate)}"
            for index, (name, rate) in enumerate(zip(groups or map(str, range(len(rates))), rates, strict=False))
        ]
    lines += [f"rank {place.rank:<6} {place.device} on {place.node}, pid {place.pid}" for place in snapshot.ranks]
    lines += [
        f"checkpoint  {checkpoint.checkpoint} at step {checkpoint.step}" for checkpoint in snapshot.checkpoints[-3:]
    ]
    for view in snapshot.recoveries[-RECOVERIES_SHOWN:]:
        lines += [f"failure     {formatting.loss_line(view)}", f"            {formatting.recovery_line(view)}"]
    lines += [f"command     {formatting.settled_line(view)}" for view in snapshot.commands[-COMMANDS_SHOWN:]]
    return lines


def checkpoints(run: Run = None, as_json: AsJson = False) -> None:
    """List the checkpoints that a run can be restored from, oldest first."""
    with connect() as client:
        committed = client.snapshot(any_run(client, run)).checkpoints
    if as_json:
        tell_json([checkpoint.model_dump(mode="json", exclude={"type"}) for checkpoint in committed])
        return
    head = ("CHECKPOINT", "STEP", "SIZE", "PINNED", "HEALTH", "LABEL", "NOTE")
    print_table(head, [formatting.checkpoint_row(checkpoint) for checkpoint in committed])


def journal(
    run: Run = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Print only records after this one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print a run's journal: every command, who gave it and why, and what became of it."""
    with connect() as client:
        chosen = any_run(client, run)
        entries = client.stream(chosen, after=after) if follow else _pages(client, chosen, after)
        asked: dict[UUID, Command] = {}
        for entry in entries:
            if isinstance(entry.record, CommandAccepted):
                asked[entry.record.command.uuid] = entry.record.command
            tell(json.dumps(entry.line()) if as_json else formatting.journal_line(entry, asked))


def _pages(client: "SteerwayClient", run: str, after: int) -> Iterator[formatting.Entry]:
    while page := client.journal(run, after=after, limit=JOURNAL_PAGE):
        yield from page
        after = page[-1].seq
        if len(page) < JOURNAL_PAGE:
            return


def logs(
    run: Run = None,
    source: Annotated[str, typer.Option("--source", "-s", help="Log to print: driver, rank-0, rank-1, ...")] = "driver",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=2000, help="Number of lines from the end.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run has ended.")] = False,
) -> None:
    """Print the end of the log of the driver or of a rank."""
    with connect() as client:
        chosen = any_run(client, run)
        seen = client.logs(chosen, source, lines).splitlines()
        tell_log(seen)
        while follow:
            over = client.snapshot(chosen).closed  # asked before the log: what was written last is not missed
            latest = client.logs(chosen, source, FOLLOWED_LOG_LINES).splitlines()
            tell_log(news(seen, latest))
            seen = latest or seen
            if over:
                return
            time.sleep(LOG_POLL_S)


def news(seen: list[str], latest: list[str]) -> list[str]:
    """Return the lines of `latest` that came after `seen`; both are tails of one growing log.

    If the log repeats lines verbatim, the overlap is ambiguous and a repetition may be left out.
    """
    if not seen:
        return latest
    for start in range(len(latest) - len(seen), -1, -1):
        if latest[start : start + len(seen)] == seen:
            return latest[start + len(seen) :]
    # The log grew by more than fits: the end of `seen` is then the beginning of `latest`.
    for count in range(min(len(seen), len(latest)), 0, -1):
        if latest[:count] == seen[-count:]:
            return latest[count:]
    return latest
