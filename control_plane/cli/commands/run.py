"""`steer run`: start a cluster, run one training in the foreground, and shut everything down."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from control_plane.api.messages import Snapshot
from control_plane.cli.cluster import (
    call_for_json,
    cluster_command,
    cluster_record,
    submit_command,
    submitter_environment,
)
from control_plane.cli.errors import INTERRUPTED, RUN_FAILED
from control_plane.cli.job_watch import JobWatch
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import say, say_log, tell
from control_plane.cli.output.watch import JobGone, Lines, LivePanel, follow, wants_panel
from control_plane.cli.select_run import connect
from control_plane.config import Settings, settings
from control_plane.console_login import create_link
from control_plane.core.model.errors import Refused, SteerwayError, Unavailable
from control_plane.storage.layout import RunFiles
from control_plane.storage.outputs import outputs

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

STOP_WAIT_S = 20.0
"""Time after Ctrl-C to stop at a step boundary, so that the journal records the stop. Then the run is killed."""

LOG_LINES_SHOWN = 20
STAY_POLL_S = 3600.0


def run(config: str, overrides: Sequence[str], unattended: bool, env: Sequence[str] = ()) -> None:
    """Start a cluster, submit one run, show its progress, and shut everything down at the end or on Ctrl-C.

    On a terminal, a cluster that it started stays up after the run until Ctrl-C, for inspection.
    Raises `typer.Exit` with 7 if the run failed, with 130 after Ctrl-C while it trained.
    """
    where = settings()
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal leaves no cluster behind either
        signal.signal(number, _interrupt)
    with _cluster(where) as is_ours:
        submitted = call_for_json(submit_command(config, overrides, True, env), submitter_environment(where))
        chosen = str(submitted["run"])
        say(*start_lines(where, chosen, unattended))
        with connect() as client:
            snapshot = _follow(client, chosen, JobWatch(where, chosen), unattended)
            files = RunFiles(where.runs_dir / chosen)
            tell(*formatting.summary(snapshot), f"journal: {files.journal}", outputs_line(files))
            if snapshot.status == "failed":
                say_log(last_log_lines(client, snapshot).splitlines())
        if is_ours and not unattended and wants_panel():
            _stay(where, chosen)
        if snapshot.status == "failed":
            raise typer.Exit(RUN_FAILED)


def _stay(where: Settings, run: str) -> None:
    """Keep the cluster up until Ctrl-C, so that the ended run can be inspected."""
    say(f"run {run} has ended; console, gateway and cluster stay up until you press Ctrl-C: {where.console_url}")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(STAY_POLL_S)


def start_lines(where: Settings, run: str, unattended: bool) -> list[str]:
    """Return the lines printed at the start: console link, and example commands ready to paste."""
    lines = [f"run      {run}", f"console  {create_link(where, page=f'/run?run={run}')}"]
    if unattended:
        return lines
    return [
        *lines,
        "steer it from another terminal:",
        f"  steer set {run} 'lr*=0.5' --reason 'loss is noisy'",
        f"  steer pause {run}; steer resume {run}",
        f"  steer save {run} --label before-the-change",
        f"  steer status {run} --watch",
    ]


def outputs_line(files: RunFiles) -> str:
    """Return a line with the folder of the script's outputs and the command that copies them."""
    count = len(outputs(files))
    if not count:
        return f"outputs: {files.work} (none)"
    counted = f"{count} file{'' if count == 1 else 's'}"
    return f"outputs: {files.work} ({counted}; copy with `steer outputs {files.run} --copy TO`)"


@contextmanager
def _cluster(where: Settings) -> Iterator[bool]:
    """Provide a cluster for the block; yields whether it was started here. One that was already up is left up."""
    status = subprocess.run(cluster_command("status"), capture_output=True, check=False)
    if status.returncode == 0:
        since = cluster_record(where).get("started_at", "earlier")
        say(f"using the cluster that is running since {since}; it will be left running")
        yield False
        return
    try:
        call_for_json(cluster_command("up", as_json=True))
        yield True
    finally:
        # A second Ctrl-C must not interrupt the shutdown; the subprocess ignores it as well.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = subprocess.run(cluster_command("down"), check=False, start_new_session=True).returncode
        signal.signal(signal.SIGINT, before)
        if code:
            say(f"steer: the cluster could not be stopped (exit code {code}); try `steer down`")


def _follow(client: "SteerwayClient", run: str, job: JobWatch, unattended: bool) -> Snapshot:
    """Show the run until it has ended. On Ctrl-C, stop the run and raise `typer.Exit`."""
    try:
        if unattended or not wants_panel():
            return follow(client, run, Lines(say), dead=job.dead)
        with LivePanel() as panel:
            return follow(client, run, panel, dead=job.dead)
    except KeyboardInterrupt:
        say("stopping at the next step boundary; Ctrl-C again to kill the run")
        _stop(client, run)
        raise typer.Exit(INTERRUPTED) from None
    except JobGone:
        say_log(_driver_log(client, run).splitlines())
        raise


def _stop(client: "SteerwayClient", run: str) -> None:
    from control_plane.core.model.commands import Stop

    try:
        receipt = client.submit(run, Stop(), reason="Ctrl-C in `steer run`")
        client.wait_settled(run, receipt.uuid, STOP_WAIT_S)
        follow(client, run, Lines(say))
    except (Refused, Unavailable) as error:
        say(f"the run could not be stopped and is killed: {error.reason}")
    except KeyboardInterrupt:
        say("killed")


def last_log_lines(client: "SteerwayClient", snapshot: Snapshot) -> str:
    """Return the last log lines of a failed run: of the driver and of each rank."""
    sources = ["driver", *(f"rank-{place.rank}" for place in snapshot.ranks)]
    parts = []
    for source in sources:
        try:
            text = client.logs(snapshot.run, source, LOG_LINES_SHOWN)
        except SteerwayError as error:
            text = f"({error.reason})"
        parts.append(f"--- {source} ---\n{text.rstrip()}")
    return "\n".join(parts)


def _driver_log(client: "SteerwayClient", run: str) -> str:
    try:
        return f"--- driver ---\n{client.logs(run, 'driver', LOG_LINES_SHOWN).rstrip()}"
    except SteerwayError as error:
        return f"(no driver log: {error.reason})"


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
