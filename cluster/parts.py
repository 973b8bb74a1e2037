"""Parts of one machine's cluster: start of their processes, readiness checks, and ports."""

import os
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from control_plane.config import Settings
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.programs import program

RAY_STARTS = 2
"""Attempts to start a raylet: Ray has a fixed timeout of 30 s, which may be too short on two cores beside trainings."""

RAY_START_S = 90.0
GATEWAY_START_S = 180.0
CONSOLE_START_S = 90.0
"""Timeouts for a machine that is busy with another training; an idle one needs 8, 8 and 4 s."""

POLL_S = 0.25
LOG_LINES_SHOWN = 15

FIRST_INNER_PORT = 20100
FIRST_EPHEMERAL_PORT = 32768
"""First port that Linux uses for outgoing connections: a listener's port from here on may be taken."""


class PartDied(SteerwayError):
    """A part of the cluster ended during the start; `detail["part"]` is its name."""

    slug = "part-died"


@dataclass(frozen=True, slots=True)
class Launch:
    """Command of one process of the cluster, and its log file."""

    name: str
    command: Sequence[str]
    log_file: Path


def check_ports(settings: Settings) -> None:
    """Raise `Invalid` if two parts have the same port, `SteerwayError` if a port is taken. Starts nothing."""
    wanted: dict[int, str] = {}
    for name, port in named_ports(settings).items():
        variable = f"STEERWAY_{name.upper()}_PORT"
        if port in wanted:
            raise Invalid(f"{wanted[port]} and {name} both have port {port}; choose another with {variable}")
        wanted[port] = name
        check_free(_bound_host(settings, name), port, name, variable)


def _bound_host(settings: Settings, part: str) -> str:
    """Return the address that a part binds."""
    return {"ray": settings.head_host, "dashboard": settings.dashboard_address}.get(part, settings.host)


def named_ports(settings: Settings) -> dict[str, int]:
    """Return the configurable ports, by the part that binds them."""
    return {
        "gateway": settings.gateway_port,
        "console": settings.console_port,
        "ray": settings.ray_port,
        "dashboard": settings.dashboard_port,
    }


def check_free(host: str, port: int, name: str, variable: str) -> None:
    """Raise `SteerwayError` if a port is taken, `Invalid` if the host is not an address of this machine."""
    try:
        _bind(host, port)
    except PermissionError:
        raise SteerwayError(
            f"port {port} ({name}) requires root rights; choose one above 1023 with {variable}=..."
        ) from None
    except OSError as error:
        if isinstance(error, socket.gaierror) or "assign" in str(error):
            setting = {"ray": "STEERWAY_RAY_HOST", "dashboard": "STEERWAY_DASHBOARD_HOST"}.get(name, "STEERWAY_HOST")
            raise Invalid(
                f"{host} is not an address of this machine ({setting}, or STEERWAY_HOST if that is unset); to use a "
                "cluster on other machines: steer deploy, or steer context add"
            ) from None
        raise SteerwayError(f"port {port} ({name}) is in use; choose another with {variable}=...") from None


def _bind(host: str, port: int) -> None:
    with socket.socket() as probe:
        # As the servers do: a port that has just been closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)  # two sockets with SO_REUSEADDR may bind one port; only one may listen


def free_port(host: str, taken: set[int]) -> int:
    """Return a free port for an internal service. Raises `SteerwayError` if there is none."""
    for port in range(FIRST_INNER_PORT, FIRST_EPHEMERAL_PORT):
        if port not in taken:
            try:
                _bind(host, port)
            except OSError:
                continue
            return port
    raise SteerwayError(f"no port from {FIRST_INNER_PORT} to {FIRST_EPHEMERAL_PORT - 1} is free")


def gateway(settings: Settings) -> Launch:
    """Return the launch that deploys the gateway on Ray Serve; it ends when the gateway answers."""
    return Launch(
        "the gateway",
        program("control_plane.gateway.deploy"),
        settings.home / "logs" / "gateway.log",
    )


def console(settings: Settings) -> Launch:
    """Return the launch of the Streamlit console's keeper, which reads the cluster's environment."""
    return Launch("the console", program("cluster.keeper"), settings.home / "logs" / "console.log")


def start(launch: Launch, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a part in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    handle = os.open(launch.log_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as log:
        return subprocess.Popen(
            list(launch.command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


Part = tuple["subprocess.Popen[bytes]", Launch]


def wait_until(
    ready: Callable[[], bool],
    process: "subprocess.Popen[bytes]",
    launch: Launch,
    wait_s: float,
    beneath: Sequence[Part] = (),
) -> None:
    """Wait until a part, which depends on the parts `beneath`, is ready.

    Raises, with the end of its log, `PartDied` if one of them has ended, or `SteerwayError` after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while not ready():
        for part, started in ((process, launch), *beneath):
            if part.poll() not in (None, 0):
                raise PartDied(
                    f"{started.name} ended with exit code {part.returncode}; {started.log_file} ends:\n"
                    + last_lines(started.log_file),
                    part=started.name,
                )
        if time.monotonic() > deadline:
            raise SteerwayError(
                f"{launch.name} did not answer within {wait_s:g} s; {launch.log_file} ends:\n"
                + last_lines(launch.log_file)
            )
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Return whether an HTTP GET succeeds."""
    return fetch(url) is not None


def fetch(url: str, bearer: str | None = None) -> bytes | None:
    """Return the body of an HTTP GET, or None if it fails."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
    try:
        # No proxy: these are this machine's own addresses, and one of them, over http, gets a token. The certificate
        # may be for another name than this machine's own address.
        unverified = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), unverified)
        with opener.open(request, timeout=5) as answer:
            return bytes(answer.read())
    except (URLError, OSError, ValueError):
        return None


def last_lines(log_file: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """Return the end of a log, indented."""
    try:
        text = log_file.read_text(errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (the log is empty)"
