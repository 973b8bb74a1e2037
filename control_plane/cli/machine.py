"""The machine's cluster and its jobs: up, down, nodes, submit. Each is another program: no Ray is imported here."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane.cli.printing import say, tell
from control_plane.config import Role, Settings, settings
from control_plane.core.errors import SteerwayError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Config = Annotated[str, typer.Argument(help="A run's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, e.g. training.max_steps=200.")
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME", help="Take this variable from this shell to the ranks, as a secret; may be repeated."
    ),
]
MAX_NODES = 64
"""As many as the cluster itself takes; said here too, because the cluster is another program."""

Nodes = Annotated[
    int,
    typer.Option(
        "--nodes",
        min=1,
        max=MAX_NODES,
        help="Ray nodes on this machine. With more than one, ranks lie on the nodes 2, 3, ..; see `steer chaos`.",
    ),
]

CLEAN_UP_S = 40.0
"""What a child gets to take down what it started, once it has been interrupted with us."""


def up(nodes: Nodes = 1, as_json: AsJson = False) -> None:
    """Start this machine's cluster: Ray, the gateway and the console."""
    raise typer.Exit(call([*local("up", as_json), f"--nodes={nodes}"]))


def down(as_json: AsJson = False) -> None:
    """End this machine's cluster and everything that runs on it."""
    raise typer.Exit(call(local("down", as_json)))


def console(
    run: Annotated[str | None, typer.Argument(help="The run whose page it opens; all runs without it.")] = None,
    role: Annotated[
        Role, typer.Option("--role", help="Whose local token the console acts with: viewer sees, operator steers.")
    ] = "operator",
) -> None:
    """Print a link that logs a browser in to this machine's console. It works once, within 12 hours."""
    from control_plane.console_login import create_link

    tell(create_link(settings(), role, f"/run?run={quote(run)}" if run else ""))


def nodes(as_json: AsJson = False) -> None:
    """The Ray nodes of this machine's cluster, and what each of them carries."""
    raise typer.Exit(call(local("nodes", as_json)))


def submit(config: Config, overrides: Overrides = None, env: Env = None, as_json: AsJson = False) -> None:
    """Submit a run to the cluster."""
    where = settings()
    code = call(submission(config, overrides or [], as_json, env or []), submitter_environment(where))
    if code == 0:
        say(f"watch it with `steer status --watch`, or at {where.console_url}")
    raise typer.Exit(code)


def local(verb: str, as_json: bool = False) -> list[str]:
    """The command that does `verb` to this machine's cluster."""
    return [sys.executable, "-m", "cluster.local", verb, *(["--json"] if as_json else [])]


def submission(config: str, overrides: Sequence[str], as_json: bool, env: Sequence[str] = ()) -> list[str]:
    """The command that submits a run."""
    flags = [*variable_flags(env), *(["--json"] if as_json else [])]
    return [sys.executable, "-m", "ray_jobs.submit", config, *overrides, *flags]


def variable_flags(env: Sequence[str]) -> list[str]:
    """`--env` for the submitter, once for each name. Their values stay in the environment."""
    return [f"--env={name}" for name in env]


def cluster_record(where: Settings) -> dict[str, Any]:
    """What `steer up` wrote down about the cluster; empty if there is nothing."""
    try:
        record = json.loads(where.cluster_file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def submitter_environment(where: Settings) -> dict[str, str]:
    """The environment of the submitter, which finds by itself what the cluster wrote down for those who talk to it."""
    return dict(os.environ) | where.environment()


def call(command: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Run a command on this terminal; its exit code. Ctrl-C reaches it too: it ends in its own way."""
    with subprocess.Popen(command, env=environment) as process:
        return _wait(process)


def call_for_json(command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints.

    Raises `typer.Exit` with its exit code if it fails (it has said why on stderr), `SteerwayError` for no JSON.
    """
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate()[0]
        except KeyboardInterrupt:
            # It cleans up after itself; what we do next would get in its way.
            process.terminate()
            process.wait(CLEAN_UP_S)
            raise
    if process.returncode:
        raise typer.Exit(process.returncode)
    try:
        answer = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SteerwayError(f"{command[2]} printed no JSON") from None
    return dict(answer)


def _wait(process: "subprocess.Popen[Any]") -> int:
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait(CLEAN_UP_S)
    # Killed by a signal: as a shell says it.
    return code if code >= 0 else 128 - code
