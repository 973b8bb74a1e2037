"""`steer resume`: release a pause, or submit a new job for a run that has none."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from control_plane.cli import cluster
from control_plane.cli.commands import lifecycle
from control_plane.cli.job_watch import job_is_gone
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import say
from control_plane.cli.select_run import active_run, connect
from control_plane.config import settings
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.programs import program

if TYPE_CHECKING:
    from control_plane.api.messages import Snapshot
    from control_plane.client import SteerwayClient
    from control_plane.config import Settings

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Trust a run from another installation: load its checkpoints and run its script."),
]

ENDING_S = 120.0
"""Leaves time to save the model, evaluate it, and for anything else that a script does after training."""

LOOK_EVERY_S = 1.0

HEARD_LATELY_S = 15.0
"""Rank 0 reports about once a second, even while paused: a run that reported within this time has a job."""


def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="Run id, or a unique prefix or suffix of it. Default: the active run."),
    ] = None,
    trust: Trust = False,
    env: cluster.Env = None,
    reason: lifecycle.Reason = None,
    detach: lifecycle.Detach = False,
    timeout: lifecycle.Timeout = lifecycle.DEFAULT_TIMEOUT_S,
    as_json: lifecycle.AsJson = False,
) -> None:
    """Resume a paused run, or restart a stopped or failed one from its latest checkpoint."""
    where = settings()
    with connect() as client:
        chosen = _chosen(client, run)
        snapshot = wait_until_ended(client, client.snapshot(chosen))
    reason = reason_for_new_job(snapshot, where)
    if reason is None:
        from control_plane.core.model.commands import Resume

        lifecycle.submit_and_wait(
            chosen, Resume(), lifecycle.CommandOptions(reason, detach=detach, timeout=timeout, as_json=as_json)
        )
        return
    if snapshot.status != "finished":
        say(f"{reason}; submitting a new job to continue from its latest checkpoint")
    if reason is not None:
        say("--reason is ignored: a new job records none, only a command does")
    submit_job(chosen, resume_command(chosen, trust, as_json, env or []), where)


def _chosen(client: "SteerwayClient", run: str | None) -> str:
    """Return the run to resume. Raises `NotFound`: a run that has ended must be named."""
    try:
        return active_run(client, run)
    except NotFound:
        if run is not None:
            raise
        raise NotFound("no run is active; name the run to restart: steer resume RUN (see `steer runs`)") from None


def wait_until_ended(
    client: "SteerwayClient",
    snapshot: "Snapshot",
    within_s: float = ENDING_S,
    sleep: Callable[[float], None] = time.sleep,
) -> "Snapshot":
    """Wait while a run is ending (its training is over, its script is not), and return its snapshot.

    Meanwhile no trainer takes a command, and a new job cannot start before the old one has ended. Raises `Conflict`
    if it takes longer than `within_s`.
    """
    waited_s = 0.0
    while formatting.is_ending(snapshot):
        if waited_s == 0.0:
            say(f"run {snapshot.run} is ending at step {snapshot.step}; waiting for its script to exit")
        if waited_s >= within_s:
            raise Conflict(
                f"run {snapshot.run} is still ending after {within_s:.0f} s: its training is over, but its script "
                "still runs. Try again once `steer status` shows that it has ended"
            )
        sleep(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S
        snapshot = client.snapshot(snapshot.run)
    return snapshot


def reason_for_new_job(snapshot: "Snapshot", where: "Settings") -> str | None:
    """Return why this run needs a new job to continue; None if it has trainers that can take a command.

    If Ray does not answer, assume that it has: the control server then rejects the command with a reason.
    """
    if snapshot.closed:
        return f"run {snapshot.run} has {snapshot.status} at step {snapshot.step}"
    heard_lately = snapshot.progress_age_s is not None and snapshot.progress_age_s < HEARD_LATELY_S
    if not heard_lately and job_is_gone(where, snapshot.run):
        return f"run {snapshot.run} has not ended, but its Ray job is gone"
    return None


def submit_job(run: str, command: Sequence[str], where: "Settings") -> NoReturn:
    """Submit a new job for an existing run, and exit with the submitter's exit code."""
    code = cluster.call(command, cluster.submitter_environment(where))
    if code == 0:
        say(f"watch it with `steer status {run} --watch`, or at {where.console_url}")
    raise typer.Exit(code)


def resume_command(run: str, trust: bool, as_json: bool, env: Sequence[str] = ()) -> list[str]:
    """Return the subprocess command that submits a new job for an existing run."""
    flags = [*(["--trust"] if trust else []), *cluster.variable_flags(env), *(["--json"] if as_json else [])]
    return program("ray_jobs.submit", "--resume", run, *flags)
