"""`steer resume`: a paused run goes on; a run that ended early, or whose job is gone, is given a new job."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from control_plane.cli import asking, machine, wording
from control_plane.cli.printing import say
from control_plane.cli.ray_job import job_is_gone
from control_plane.cli.target import active_run, connect
from control_plane.config import settings
from control_plane.core.errors import Conflict, NotFound

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient
    from control_plane.config import Settings
    from control_plane.handle import Snapshot

Trust = Annotated[
    bool,
    typer.Option("--trust", help="For a new job: take a run of elsewhere, its script and checkpoints, for your own."),
]

ENDING_S = 120.0
"""Saving a model, a last evaluation, and whatever else a script does after its training."""

LOOK_EVERY_S = 1.0

HEARD_LATELY_S = 15.0
"""Rank 0 reports about once a second, also while it is paused: a run that was heard lately has its job."""


def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="The run, or the beginning or the end of its id. Without it: the active one."),
    ] = None,
    trust: Trust = False,
    env: machine.Env = None,
    reason: asking.Reason = None,
    detach: asking.Detach = False,
    timeout: asking.Timeout = asking.DEFAULT_TIMEOUT_S,
    as_json: asking.AsJson = False,
) -> None:
    """Have a run go on: release a pause, or start again from the newest checkpoint what was stopped, failed or lost."""
    where = settings()
    with connect() as client:
        chosen = _chosen(client, run)
        snapshot = when_it_has_ended(client, client.snapshot(chosen))
    why = needs_a_job(snapshot, where)
    if why is None:
        from control_plane.core.commands import Resume

        asking.ask(chosen, Resume(), asking.Manner(reason, detach=detach, timeout=timeout, as_json=as_json))
        return
    if snapshot.status != "finished":
        say(f"{why}; submitting a new job that goes on from its newest checkpoint")
    if reason is not None:
        say("the reason is not kept: only commands have one")
    submit_job(chosen, resumption(chosen, trust, as_json, env or []), where)


def _chosen(client: "SteerwayClient", run: str | None) -> str:
    """Raises `NotFound` with a hint: a run that is over is not resumed unless it is named."""
    try:
        return active_run(client, run)
    except NotFound:
        if run is not None:
            raise
        raise NotFound("no run is active; name the one that shall go on: steer resume RUN (see `steer runs`)") from None


def when_it_has_ended(
    client: "SteerwayClient",
    snapshot: "Snapshot",
    within_s: float = ENDING_S,
    sleep: Callable[[float], None] = time.sleep,
) -> "Snapshot":
    """The run as it is; one whose training has ended and that is about to end, when it has, or goes on after all.

    Nobody would carry out a command then, and a new job cannot begin before the old one has ended. Raises `Conflict`
    if it takes too long.
    """
    waited_s = 0.0
    while wording.is_ending(snapshot):
        if waited_s == 0.0:
            say(f"run {snapshot.run} is ending, at step {snapshot.step}; waiting until it has ended")
        if waited_s >= within_s:
            raise Conflict(
                f"run {snapshot.run} is still ending after {within_s:.0f} s: its script goes on after its training. "
                "Try again when `steer status` says how it has ended"
            )
        sleep(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S
        snapshot = client.snapshot(snapshot.run)
    return snapshot


def needs_a_job(snapshot: "Snapshot", where: "Settings") -> str | None:
    """Why a command cannot have this run go on, as a sentence; None if its trainers are there to take one.

    Where Ray does not answer nobody knows, and the run is asked: its refusal is a sentence too.
    """
    if snapshot.closed:
        return f"run {snapshot.run} has {snapshot.status} at step {snapshot.step}"
    heard_lately = snapshot.progress_age_s is not None and snapshot.progress_age_s < HEARD_LATELY_S
    if not heard_lately and job_is_gone(where, snapshot.run):
        return f"run {snapshot.run} is not over, but no Ray job executes it"
    return None


def submit_job(run: str, command: Sequence[str], where: "Settings") -> NoReturn:
    """Call the submitter for a run that there is already, and leave with its exit code."""
    code = machine.call(command, machine.submitter_environment(where))
    if code == 0:
        say(f"watch it with `steer status {run} --watch`, or at {where.console_url}")
    raise typer.Exit(code)


def resumption(run: str, trust: bool, as_json: bool, env: Sequence[str] = ()) -> list[str]:
    """The command that submits a new job for a run that there is already."""
    flags = [*(["--trust"] if trust else []), *machine.variable_flags(env), *(["--json"] if as_json else [])]
    return [sys.executable, "-m", "ray_jobs.submit", "--resume", run, *flags]
