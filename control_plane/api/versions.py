"""Versions: of the messages between control server, gateway and ranks, and of client, gateway and ranks themselves."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from control_plane.core.model.errors import Conflict, Refused

PROTOCOL = 5
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


UNKNOWN = ("", "unknown", "0")
"""Releases of a source tree, of a client that does not say its own, and of runs of earlier releases."""


def check_release(run: str, node: str, of_driver: str, own: str | None = None) -> None:
    """Raise Refused if a rank's installed release is not that of the gateway and the driver that started it.

    Ranks pickle and unpickle each other's messages, and promise equal results: two releases in one run cannot.
    """
    own = release() if own is None else own
    if own == of_driver or own in UNKNOWN or of_driver in UNKNOWN:
        return
    raise Refused(
        f"node {node} has Steerway {own}, but the gateway that started run {run} has {of_driver}: install one release "
        f"on all nodes (`pip install steerway=={of_driver}` on {node}), restart its Ray, then `steer resume {run}`"
    )


def release_notes(client: str, gateway: str | None = None) -> tuple[str, ...]:
    """Return what the user of a client should know about its release and the gateway's."""
    gateway = release() if gateway is None else gateway
    if client == gateway or client in UNKNOWN or gateway in UNKNOWN:
        return ()
    return (
        f"this client is Steerway {client} and the gateway is {gateway}: the run uses the gateway's; `pip install "
        f"steerway=={gateway}` gives this machine the same",
    )
