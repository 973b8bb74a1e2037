"""`steer run`: start a cluster, run one training in the foreground, and shut everything down."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from control_plane.api.messages import Snapshot
from control_plane.cli.cluster import call_for_json, cluster_command, cluster_record
from control_plane.cli.errors import INTERRUPTED, RUN_FAILED
from control_plane.cli.launching.job_watch import JobWatch
from control_plane.cli.launching.request import LaunchChoices, launch
from control_plane.cli.launching.submit import last_log_lines
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import say, say_log, tell
from control_plane.cli.output.watch import JobGone, Lines, LivePanel, follow, wants_panel
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.console_login import create_link
from control_plane.contexts import use_local
from control_plane.core.model.errors import Refused, Unavailable
from control_plane.storage.layout import RunFiles
from control_plane.storage.outputs import outputs

STOP_WAIT_S = 20.0
"""Time after Ctrl-C to stop at a step boundary, so that the journal records the stop. Then the run is killed."""

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
        with SteerwayClient.from_settings(where) as client:
            launched = launch(client, config, overrides, LaunchChoices(tuple(env)), shares_files=True)
            chosen = launched.runs[0].run
            say(*launched.notes, *start_lines(where, chosen, unattended))
            snapshot = _follow(client, chosen, JobWatch(client, chosen), unattended)
            files = RunFiles(where.runs_dir / chosen)
            tell(*formatting.summary(snapshot), f"journal: {files.journal}", outputs_line(files))
            if snapshot.status == "failed":
                say_log(log_ends(client, snapshot))
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
        use_local(where)
        yield True
    finally:
        # A second Ctrl-C must not interrupt the shutdown; the subprocess ignores it as well.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = subprocess.run(cluster_command("down"), check=False, start_new_session=True).returncode
        signal.signal(signal.SIGINT, before)
        if code:
            say(f"steer: the cluster could not be stopped (exit code {code}); try `steer down`")


def _follow(client: SteerwayClient, run: str, job: JobWatch, unattended: bool) -> Snapshot:
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
        say_log(last_log_lines(client, run, "driver"))
        raise


def _stop(client: SteerwayClient, run: str) -> None:
    from control_plane.core.model.commands import Stop

    try:
        receipt = client.submit(run, Stop(), reason="Ctrl-C in `steer run`")
        client.wait_settled(run, receipt.uuid, STOP_WAIT_S)
        follow(client, run, Lines(say))
    except (Refused, Unavailable) as error:
        say(f"the run could not be stopped and is killed: {error.reason}")
    except KeyboardInterrupt:
        say("killed")


def log_ends(client: SteerwayClient, snapshot: Snapshot) -> list[str]:
    """Return the last log lines of a failed run: of the driver and of each rank."""
    sources = ["driver", *(f"rank-{place.rank}" for place in snapshot.ranks)]
    return [line for source in sources for line in last_log_lines(client, snapshot.run, source)]


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
