"""`steer deploy`: the gateway and a supervised console on an existing Ray cluster, through a subprocess with Ray."""

from typing import Annotated

import typer

from control_plane.cli.cluster import call
from control_plane.programs import program


def deploy(
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="The head's address, as `ray start --head` prints it.")
    ],
    public_name: Annotated[
        list[str] | None,
        typer.Option(
            "--public-name", metavar="NAME", help="Another host name by which clients reach the gateway. Repeatable."
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove gateway and console from the cluster.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Put gateway, tokens and console on an existing Ray cluster. Run it on a machine of that cluster. Idempotent."""
    flags = [f"--address={address}", *(f"--public-name={name}" for name in public_name or [])]
    flags += ["--delete"] if delete else []
    flags += ["--json"] if as_json else []
    raise typer.Exit(call(program("cluster.deploy", *flags)))
