"""`steer up`, `down`, `submit` and `console`: this machine's cluster, through subprocesses without Ray."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane.cli.output.printing import say, tell
from control_plane.config import Role, Settings, settings
from control_plane.core.model.errors import SteerwayError
from control_plane.programs import program

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Config = Annotated[str, typer.Argument(help="YAML config of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Config values to change, e.g. training.max_steps=200."),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME", help="Pass this environment variable to the ranks as a secret. Repeatable."),
]
MAX_NODES = 64
"""The limit of `cluster.local`, repeated here because that is another program."""

Nodes = Annotated[
    int,
    typer.Option(
        "--nodes",
        min=1,
        max=MAX_NODES,
        help="Number of Ray nodes on this machine. With more than one, ranks run on nodes 2, 3, ...",
    ),
]

CLEAN_UP_S = 40.0
"""Time for a subprocess to clean up after Ctrl-C, which reaches it too."""


TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="Serve TLS with this PEM certificate.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Private key of the certificate.")]


def up(nodes: Nodes = 1, tls_cert: TlsCert = None, tls_key: TlsKey = None, as_json: AsJson = False) -> None:
    """Start this machine's cluster: Ray, the gateway and the console."""
    from control_plane.contexts import use_local

    given = {"STEERWAY_TLS_CERT": tls_cert, "STEERWAY_TLS_KEY": tls_key}
    environment = os.environ | {name: str(path.expanduser().absolute()) for name, path in given.items() if path}
    where = settings(environment)
    code = call([*cluster_command("up", as_json), f"--nodes={nodes}"], environment)
    if code == 0 and (other := use_local(where)) is not None:
        say(f"context {other} stays in use; to steer this cluster: steer context use local")
    raise typer.Exit(code)


def down(as_json: AsJson = False) -> None:
    """Stop this machine's cluster and everything that runs on it."""
    raise typer.Exit(call(cluster_command("down", as_json)))


def console(
    run: Annotated[str | None, typer.Argument(help="Run whose page to open. Default: the list of runs.")] = None,
    role: Annotated[
        Role, typer.Option("--role", help="Role of the login: viewer can look, operator can steer.")
    ] = "operator",
) -> None:
    """Print a login link for this machine's console. It works once, within 12 hours."""
    from control_plane.console_login import create_link

    tell(create_link(settings(), role, f"/run?run={quote(run)}" if run else ""))


def cluster_command(verb: str, as_json: bool = False) -> list[str]:
    """Return the subprocess command for a verb of `cluster.local`."""
    return program("cluster.local", verb, *(["--json"] if as_json else []))


def cluster_record(where: Settings) -> dict[str, Any]:
    """Return the record that `steer up` wrote about the cluster; empty if there is none."""
    try:
        record = json.loads(where.cluster_file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def call(command: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Run a command on this terminal and return its exit code. Ctrl-C reaches it as well."""
    with subprocess.Popen(command, env=environment) as process:
        return _wait(process)


def call_for_json(command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command and return the JSON object that it prints.

    Raises `typer.Exit` with its exit code if it fails (it has said why on stderr), `SteerwayError` for no JSON.
    """
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate()[0]
        except KeyboardInterrupt:
            # Wait for it to clean up, so that the next command does not interfere.
            process.terminate()
            process.wait(CLEAN_UP_S)
            raise
    if process.returncode:
        raise typer.Exit(process.returncode)
    try:
        answer = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SteerwayError(f"`{' '.join(command[2:4])}` printed no JSON object") from None
    return dict(answer)


def _wait(process: "subprocess.Popen[Any]") -> int:
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait(CLEAN_UP_S)
    # Killed by a signal: the exit code that a shell reports.
    return code if code >= 0 else 128 - code
