"""`steer submit`: begin a run through the gateway, and say what became of it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.api.launching import JobView, Launched
from control_plane.cli import cluster
from control_plane.cli.errors import RUN_FAILED
from control_plane.cli.launching.request import LaunchChoices, NoBundle, PriorityOption, WaitForNodes, launch
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import connect
from control_plane.contexts import chosen_settings
from control_plane.core.model.errors import SteerwayError

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

STARTS_WITHIN_S = 60.0
"""A job's driver starts within seconds; on a busy machine within a minute. Then it is said that it has not started."""

LOOK_EVERY_S = 0.5
LOG_LINES_SHOWN = 20


def submit(
    config: cluster.Config,
    overrides: cluster.Overrides = None,
    env: cluster.Env = None,
    no_bundle: NoBundle = False,
    priority: PriorityOption = 0,
    wait_for_nodes: WaitForNodes = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait until the run's job has started.")] = False,
    as_json: cluster.AsJson = False,
) -> None:
    """Submit a run to the cluster, with the code of its script, and wait until its job has started."""
    where = chosen_settings()
    choices = LaunchChoices(tuple(env or ()), priority, wait_for_nodes, no_bundle)
    with connect() as client:
        launched = launch(client, config, overrides or [], choices, shares_files=where.url is None)
        tell_launched(launched, as_json, "submitted")
        if not detach:
            wait_until_started(client, launched.runs[0].run)
    say(f"watch it with `steer status {launched.runs[0].run} --watch`")


def tell_launched(launched: Launched, as_json: bool, done: str) -> None:
    """Print the runs of an answer, and what the user should see of it."""
    for note in launched.notes:
        say(note)
    if as_json:
        members = launched.model_dump(mode="json")
        first = members["runs"][0]
        tell_json({"run": first["run"], "job": first["job"], **members})
        return
    for one in launched.runs:
        tell(f"{done} run {one.run}" + (f"; it is queued: {one.queued_because}" if one.queued_because else ""))


def wait_until_started(
    client: "SteerwayClient",
    run: str,
    within_s: float = STARTS_WITHIN_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a run's job works, or waits in the queue. Raises `typer.Exit` with 7 and the reason if it failed."""
    waited_s = 0.0
    while (job := client.job(run)).status in ("none", "pending"):
        if waited_s >= within_s:
            say(f"run {run} has not started after {within_s:.0f} s: {job.message or 'Ray has not started its job yet'}")
            return
        sleep(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S
    if job.status == "queued":
        say(f"run {run} is queued: {job.message or 'it waits for room'}; see `steer queue`")
    elif job.status in ("failed", "stopped"):
        say(f"steer: run {run} failed: {_reason(client, job)}")
        say(*last_log_lines(client, run, "driver"))
        raise typer.Exit(RUN_FAILED)


def _reason(client: "SteerwayClient", job: JobView) -> str:
    try:
        return client.snapshot(job.run).reason or job.message or "its Ray job has ended"
    except SteerwayError:
        return job.message or "its Ray job has ended"


def last_log_lines(client: "SteerwayClient", run: str, source: str) -> list[str]:
    """Return the last lines of one of a run's logs, with its name before them."""
    try:
        return [f"--- {source} ---", *client.logs(run, source, LOG_LINES_SHOWN).rstrip().splitlines()]
    except SteerwayError as error:
        return [f"--- {source}: {error.reason} ---"]
