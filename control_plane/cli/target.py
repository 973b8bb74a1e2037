"""Whom a command is for: the gateway in the settings, and one run of it."""

from typing import TYPE_CHECKING

from control_plane.cli.refusals import Misused
from control_plane.config import settings
from control_plane.core.errors import Invalid, NotFound
from control_plane.handle import RunSummary

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

ACTIVE = ("waiting", "running", "paused", "recovering", "switching")
MAX_RUNS_NAMED = 8
"""More names than this in a sentence help nobody; `steer runs` has them all."""


def connect() -> "SteerwayClient":
    """A client with the operator's token. Raises `NotAllowed` if there is none."""
    from control_plane.client import SteerwayClient

    return SteerwayClient.from_settings(settings(), role="operator")


def active_run(client: "SteerwayClient", given: str | None) -> str:
    """The run that is meant: its id, a beginning or an end that only it has, or, if none is given, the only active one.

    Raises: `NotFound` if there is none, `Misused` if there are several.
    """
    if given is not None:
        return _named(client, given)
    active = [run.run for run in client.runs() if run.status in ACTIVE]
    if not active:
        raise NotFound("no run is active: submit one with `steer submit CONFIG`, or see `steer runs`")
    return only(active, "runs are active; say which one")


def any_run(client: "SteerwayClient", given: str | None) -> str:
    """As `active_run`; when nothing is given and nothing is active, the newest run."""
    if given is not None:
        return _named(client, given)
    runs = client.runs()
    if not runs:
        raise NotFound("there is no run yet: submit one with `steer submit CONFIG`")
    active = [run.run for run in runs if run.status in ACTIVE]
    if active:
        return only(active, "runs are active; say which one")
    return max(runs, key=_age).run


def _age(run: RunSummary) -> str:
    return run.created_at


def _named(client: "SteerwayClient", given: str) -> str:
    try:
        return client.snapshot(given).run or given
    except (NotFound, Invalid) as refusal:
        found = [run.run for run in client.runs() if given and (run.run.startswith(given) or run.run.endswith(given))]
        if not found:
            raise refusal from None
        return only(found, f"runs begin or end with {given!r}; say more of the one you mean")


def only(runs: list[str], several: str) -> str:
    """The one run there is. Raises `Misused` if there are several: `several` says of what kind."""
    if len(runs) == 1:
        return runs[0]
    more = f" and {len(runs) - MAX_RUNS_NAMED} more" if len(runs) > MAX_RUNS_NAMED else ""
    raise Misused(f"{len(runs)} {several}: {', '.join(sorted(runs)[:MAX_RUNS_NAMED])}{more}")
