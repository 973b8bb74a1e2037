"""`steer resume`: release a pause, or submit a new job for a run that has none."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.api.launching import ResumeRequest
from control_plane.api.versions import release
from control_plane.cli import cluster
from control_plane.cli.commands import lifecycle
from control_plane.cli.launching.job_watch import job_is_gone
from control_plane.cli.launching.request import shell_secrets
from control_plane.cli.launching.submit import tell_launched, wait_until_started
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import say
from control_plane.cli.select_run import active_run, connect
from control_plane.core.model.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from control_plane.api.messages import Snapshot
    from control_plane.client import SteerwayClient

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
    with connect() as client:
        chosen = _chosen(client, run)
        snapshot = wait_until_ended(client, client.snapshot(chosen))
        no_trainers = reason_for_new_job(client, snapshot)
    if no_trainers is None:
        from control_plane.core.model.commands import Resume

        lifecycle.submit_and_wait(
            chosen, Resume(), lifecycle.CommandOptions(reason, detach=detach, timeout=timeout, as_json=as_json)
        )
        return
    if snapshot.status != "finished":
        say(f"{no_trainers}; submitting a new job to continue from its latest checkpoint")
    if reason is not None:
        say("--reason is ignored: a new job records none, only a command does")
    request = ResumeRequest(trust=trust, secrets=shell_secrets(env or []), client=release(""))
    if missing := sorted(set(env or []) - set(request.secrets)):
        raise Invalid(f"{', '.join(missing)} is not set in this shell: set it, then repeat the command")
    with connect() as client:
        resume_by_new_job(client, chosen, request, as_json)


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


def reason_for_new_job(client: "SteerwayClient", snapshot: "Snapshot") -> str | None:
    """Return why this run needs a new job to continue; None if it has trainers that can take a command.

    If Ray does not answer, assume that it has: the control server then rejects the command with a reason.
    """
    if snapshot.closed:
        return f"run {snapshot.run} has {snapshot.status} at step {snapshot.step}"
    heard_lately = snapshot.progress_age_s is not None and snapshot.progress_age_s < HEARD_LATELY_S
    if not heard_lately and job_is_gone(client, snapshot.run):
        return f"run {snapshot.run} has not ended, but its Ray job is gone"
    return None


def resume_by_new_job(client: "SteerwayClient", run: str, request: ResumeRequest, as_json: bool) -> None:
    """Have the gateway start a new job for an existing run, and print its answer."""
    tell_launched(client.resume(run, request), as_json, "resumed")
    wait_until_started(client, run)
    say(f"watch it with `steer status {run} --watch`")
