"""The parts of one machine's cluster: how a process of it starts, shows its life, and finds its ports."""

import os
import socket
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
"""Ray gives its raylet a fixed 30 s; on two cores beside other trainings it has needed more, and then gives up."""

RAY_START_S = 90.0
GATEWAY_START_S = 180.0
CONSOLE_START_S = 90.0
"""A machine that is busy with another training needs many times what an idle one does (8, 8 and 4 s)."""

POLL_S = 0.25
LOG_LINES_SHOWN = 15

FIRST_INNER_PORT = 20100
FIRST_EPHEMERAL_PORT = 32768
"""From here on Linux hands ports out to outgoing connections; a listener placed there may find its place taken."""


class PartDied(SteerwayError):
    """A part of the cluster ended before all of it answered; `detail["part"]` is its name."""

    slug = "part-died"


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of the cluster: its command, and where its output goes."""

    name: str
    command: Sequence[str]
    log_file: Path


def check_ports(settings: Settings) -> None:
    """Raises `Invalid` if two parts want one port, `SteerwayError` if a port is taken. Starts nothing."""
    wanted: dict[int, str] = {}
    for name, port in named_ports(settings).items():
        variable = f"STEERWAY_{name.upper()}_PORT"
        if port in wanted:
            raise Invalid(f"port {port} is wanted by the {wanted[port]} and the {name}; choose another with {variable}")
        wanted[port] = name
        _check_free(settings.host, port, name, variable)


def named_ports(settings: Settings) -> dict[str, int]:
    """The ports that a person may choose, by the part that binds them."""
    return {
        "gateway": settings.gateway_port,
        "console": settings.console_port,
        "ray": settings.ray_port,
        "dashboard": settings.dashboard_port,
    }


def _check_free(host: str, port: int, name: str, variable: str) -> None:
    try:
        _bind(host, port)
    except PermissionError:
        raise SteerwayError(
            f"port {port} ({name}) may not be used by you; choose one above 1023 with {variable}=..."
        ) from None
    except OSError as error:
        if isinstance(error, socket.gaierror) or "assign" in str(error):
            raise Invalid(f"STEERWAY_HOST={host!r} is not an address of this machine") from None
        raise SteerwayError(f"port {port} ({name}) is in use; choose another with {variable}=...") from None


def _bind(host: str, port: int) -> None:
    with socket.socket() as probe:
        # As the servers do: a port that was closed a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)  # two sockets with SO_REUSEADDR may bind one port; only one may listen


def free_port(host: str, taken: set[int]) -> int:
    """A free port for something that nobody needs to find. Raises `SteerwayError` if there is none."""
    for port in range(FIRST_INNER_PORT, FIRST_EPHEMERAL_PORT):
        if port not in taken:
            try:
                _bind(host, port)
            except OSError:
                continue
            return port
    raise SteerwayError(f"no port from {FIRST_INNER_PORT} to {FIRST_EPHEMERAL_PORT - 1} is free")


def gateway(settings: Settings) -> Launch:
    """What deploys the gateway on Ray Serve and ends when it answers."""
    return Launch(
        "the gateway",
        program("control_plane.gateway.deploy"),
        settings.home / "logs" / "gateway.log",
    )


def console(settings: Settings) -> Launch:
    """The Streamlit console and its keeper, which find their addresses in the environment of the cluster."""
    return Launch("the console", program("cluster.keeper"), settings.home / "logs" / "console.log")


def start(launch: Launch, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a part in a session of its own, so that Ctrl-C in the terminal ends only whoever asked."""
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
    """Wait for a part that stands on the living parts `beneath`.

    Raises, with the end of its log, `PartDied` if one of them has ended, or `SteerwayError` if it took too long.
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
    """Whether an HTTP GET is answered with success."""
    return fetch(url) is not None


def fetch(url: str, bearer: str | None = None) -> bytes | None:
    """What an HTTP GET is answered with, or None unless it succeeds."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
    try:
        # No proxy: these are this machine's own addresses, and one of them is shown a token.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return bytes(answer.read())
    except (URLError, OSError, ValueError):
        return None


def last_lines(log_file: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """The end of a log, indented."""
    try:
        text = log_file.read_text(errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (the log is empty)"
