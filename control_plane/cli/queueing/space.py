"""`steer du` and `steer delete`: how much space runs take, and the removal of runs that nobody needs."""

from typing import Annotated

import typer

from control_plane.api.sentences import format_size
from control_plane.cli.commands.lifecycle import Yes, check_can_ask, confirm
from control_plane.cli.commands.show import AsJson, print_table
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import any_run, connect


def du(as_json: AsJson = False) -> None:
    """Show the disk usage of each run, split by kind of file, and of each owner; the largest first."""
    with connect() as client:
        usage = client.usage()
    if as_json:
        tell_json(usage)
        return
    kinds = ("checkpoints", "journal", "metrics", "code", "work", "logs", "other")
    rows = [
        (run.run, run.owner, format_size(run.total), *(format_size(getattr(run, kind)) for kind in kinds))
        for run in usage.runs
    ]
    print_table(("RUN", "OWNER", "TOTAL", *(kind.upper() for kind in kinds)), rows)
    tell("")
    owners = [
        (each.owner, str(each.runs), format_size(each.total), "-" if each.limit is None else format_size(each.limit))
        for each in usage.owners
    ]
    print_table(("OWNER", "RUNS", "TOTAL", "QUOTA"), owners)


def delete(
    run: Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete an ended or queued run with all its files: checkpoints, journal, logs, outputs. It cannot be undone."""
    check_can_ask(yes, "this removes the run and its checkpoints for good")
    with connect() as client:
        chosen = any_run(client, run)
        confirm(yes, f"Delete {chosen} with all its files?", "not confirmed; the run was not deleted")
        deleted = client.delete(chosen)
    if as_json:
        tell_json(deleted)
        return
    tell(f"deleted run {deleted.run} ({format_size(deleted.size_bytes)})")
