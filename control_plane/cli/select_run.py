"""Selection of the run that a command is for, by id, prefix, suffix or default."""

from typing import TYPE_CHECKING

from control_plane.api.messages import RunSummary
from control_plane.cli.errors import UsageError
from control_plane.contexts import chosen_settings
from control_plane.core.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

ACTIVE = ("waiting", "running", "paused", "recovering", "switching")
MAX_RUNS_NAMED = 8
"""Most runs that a message lists; `steer runs` lists all of them."""


def connect() -> "SteerwayClient":
    """Return a client with the operator's token. Raises `NotAllowed` if there is none."""
    from control_plane.client import SteerwayClient

    return SteerwayClient.from_settings(chosen_settings(), role="operator")


def active_run(client: "SteerwayClient", given: str | None) -> str:
    """Return the id of the run named by `given`, a unique prefix or suffix of it, or else of the only active run.

    Raises `NotFound` if no run matches, `UsageError` if several do.
    """
    if given is not None:
        return _named(client, given)
    active = [run.run for run in client.runs() if run.status in ACTIVE]
    if not active:
        raise NotFound("no run is active: submit one with `steer submit CONFIG`, or name one of `steer runs`")
    return only(active, "{} runs are active")


def any_run(client: "SteerwayClient", given: str | None) -> str:
    """Return a run like `active_run`, or the newest run if none is given and none is active."""
    if given is not None:
        return _named(client, given)
    runs = client.runs()
    if not runs:
        raise NotFound("no run exists yet: submit one with `steer submit CONFIG`")
    active = [run.run for run in runs if run.status in ACTIVE]
    if active:
        return only(active, "{} runs are active")
    return max(runs, key=_age).run


def _age(run: RunSummary) -> str:
    return run.created_at


def _named(client: "SteerwayClient", given: str) -> str:
    try:
        return client.snapshot(given).run or given
    except (NotFound, Invalid) as error:
        runs = [run.run for run in client.runs() if given and (run.run.startswith(given) or run.run.endswith(given))]
        if not runs:
            raise error from None
        return only(runs, f"{given!r} matches {{}} runs")


def only(runs: list[str], several: str) -> str:
    """Return the only run. Raises `UsageError` with the message `several`, in which `{}` is their number."""
    if len(runs) == 1:
        return runs[0]
    more = f" and {len(runs) - MAX_RUNS_NAMED} more" if len(runs) > MAX_RUNS_NAMED else ""
    listed = ", ".join(sorted(runs)[:MAX_RUNS_NAMED])
    raise UsageError(f"{several.replace('{}', str(len(runs)))}: {listed}{more}; be more specific")
