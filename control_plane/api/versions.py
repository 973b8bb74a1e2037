"""Version of the messages between control server, gateway and ranks, and the check that two processes share it."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from control_plane.core.model.errors import Conflict

PROTOCOL = 2
"""Raised whenever a message or its module changes. Messages cross Ray as pickles that name their classes' modules, so
two releases that differ here cannot understand each other. 1 is release 0.1, which could not be asked."""

OLDEST: Mapping[str, int | str] = {"protocol": 1, "release": "0.1"}


def release(not_installed: str = "unknown") -> str:
    """Return the installed release of Steerway, or `not_installed` for a source tree."""
    try:
        return version("steerway")
    except PackageNotFoundError:
        return not_installed


def own() -> dict[str, int | str]:
    """Return this process's protocol and release, in types that every release can read."""
    return {"protocol": PROTOCOL, "release": release()}


def check_protocol(run: str, theirs: Mapping[str, int | str]) -> None:
    """Raise Conflict if the run's control server speaks another protocol than this process."""
    if theirs["protocol"] != PROTOCOL:
        raise Conflict(
            f"the control server of run {run} is of Steerway {theirs['release']} and this process of {release()}: they "
            f"cannot exchange messages. `steer down`, `steer up` and `steer resume {run}` continue the run from its "
            "latest checkpoint with the installed release"
        )
