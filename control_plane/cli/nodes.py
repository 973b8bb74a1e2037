"""`steer nodes`: the nodes of the gateway's cluster, or of this machine's own, with what runs on them."""

from typing import Annotated

import typer

from control_plane.api.cluster import ClusterView, NodeInfo
from control_plane.cli.cluster import call, cluster_command
from control_plane.cli.commands.show import print_table
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import connect
from control_plane.config import settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
SHOWN_ID_CHARS = 8


def nodes(as_json: AsJson = False) -> None:
    """List the cluster's Ray nodes with their resources, releases, and the ranks and services on each."""
    where = settings()
    if where.url is None and where.cluster_file.exists():
        # Of its own cluster this machine knows more, and also while the gateway is down.
        raise typer.Exit(call(cluster_command("nodes", as_json)))
    with connect() as client:
        view = client.cluster()
    if as_json:
        tell_json(view)
        return
    print_table(("NODE", "ID", "ADDRESS", "STATE", "CPUS", "GPUS", "RELEASE", "ACTORS"), list(map(_row, view.nodes)))
    tell("", f"Ray {view.ray}, Steerway {view.release}; free: {free(view)}")


def _row(node: NodeInfo) -> tuple[str, ...]:
    cpus, gpus = (f"{node.resources.get(name, 0):g}" for name in ("CPU", "GPU"))
    name = f"{node.name} (head)" if node.is_head else node.name
    release = node.release or "-"
    actors = ", ".join(node.actors) or "-"
    return name, node.node_id[:SHOWN_ID_CHARS], node.address, node.state, cpus, gpus, release, actors


def free(view: ClusterView) -> str:
    """Return the free CPUs and GPUs as a text."""
    known = [name for name in ("CPU", "GPU") if name in view.resources]
    return ", ".join(f"{view.free.get(name, 0):g} of {view.resources[name]:g} {name}s" for name in known) or "nothing"
