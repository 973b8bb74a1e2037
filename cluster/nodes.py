"""Ray nodes of one machine's cluster: their names, their commands, and their states."""

import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass

import psutil

from cluster.environment import MARK, NODE_MARK, ray_token_file
from cluster.parts import Launch, fetch, free_port, named_ports
from cluster.processes import ProcessMark, find_carriers
from cluster.record import ClusterRecord
from control_plane.addresses import is_loopback
from control_plane.config import Settings
from control_plane.core.model.errors import NotFound
from control_plane.programs import program

HEAD = "node-1"
HEAD_PROCESS = "ray"
"""Name of the head in the record of processes, from the time before there were other nodes."""

HEAD_LAUNCH = "Ray"
"""Name of the head in messages during the start."""

MAX_NODES = 64
"""Each is a raylet and two agents, about 300 MB; more of them on one machine test nothing new."""

MIN_LOGICAL_CPUS = 4
"""Ray counts CPUs, it does not bind them. Two ranks take one each and the driver's controller another: a machine of
two cores must be able to run the smallest distributed run."""

MIN_NODE_CPUS = 2
"""Fewest logical CPUs of a further node: the last remaining node must be able to run two ranks."""

OBJECT_STORE_BYTES = 256 * 1024**2
"""Commands and metrics are small and batches never pass through Ray; its default is 30 % of the memory."""

SHOWN_ID_CHARS = 8

EVERY_NODE_HAS = {"IDLE", "DashboardAgent", "RuntimeEnvAgent"}
"""Process titles that every node has."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """State of one node. `state` is Ray's, or `unknown` if Ray does not know it; `carries` are its actors' titles."""

    name: str
    node_id: str
    state: str
    cpus: float
    stopped: bool
    carries: tuple[str, ...]


def node_name(number: int) -> str:
    """Return the name of a node, counted from 1, which is the head."""
    return f"node-{number}"


def node_number(name: str) -> int:
    """Return the number in a node's name. Raises `ValueError`."""
    return int(name.removeprefix("node-"))


def recorded_nodes(record: ClusterRecord) -> dict[str, ProcessMark]:
    """Return the nodes of a cluster by name, including dead ones, with the first process of each."""
    named = {HEAD if name == HEAD_PROCESS else name: mark for name, mark in record.processes.items()}
    nodes = {name: mark for name, mark in named.items() if name.startswith("node-")}
    return dict(sorted(nodes.items(), key=lambda item: node_number(item[0])))


def next_number(record: ClusterRecord) -> int:
    """Return the number of the next node. Numbers of dead nodes are not reused, so that names are unique."""
    return max((node_number(name) for name in recorded_nodes(record)), default=1) + 1


def node_temp_dir(record: ClusterRecord, name: str) -> str:
    """Return the folder for a node's sockets and logs, a subfolder of the cluster's own, which is removed with it.

    Not the cluster's own folder, which is private: Ray makes the folder that it is given writable for everybody.
    """
    return f"{record.temp_dir}/n{node_number(name)}"


def node_members(record: ClusterRecord, name: str) -> list[psutil.Process]:
    """Return every living process of a node: raylet, agents, workers, and their descendants.

    Raises `NotFound` if the cluster never had such a node.
    """
    nodes = recorded_nodes(record)
    if name not in nodes:
        raise NotFound(f"this cluster has no node {name!r}; it has {', '.join(nodes) or 'none'} (see `steer nodes`)")
    # Processes of any node may name the head's folder, so only the other nodes' folders identify their processes.
    folder = None if name == HEAD else node_temp_dir(record, name) + "/"
    return find_carriers({MARK: record.cluster, NODE_MARK: name}, [nodes[name]], folder)


def cpus_of_head(nodes: int) -> int:
    """Return the number of logical CPUs of the head.

    Alone, it runs the ranks too. With other nodes it has none: the gateway, the control servers and the drivers
    need none, and ranks then run on nodes that may be killed while the processes that must detect it survive.
    """
    return max(os.cpu_count() or 1, MIN_LOGICAL_CPUS) if nodes == 1 else 0


def cpus_of_node() -> int:
    """Return the number of logical CPUs of each further node: the machine's, as if it were a machine of its own."""
    return max(os.cpu_count() or 1, MIN_NODE_CPUS)


def ray_head(settings: Settings, temp_dir: str, nodes: int = 1) -> Launch:
    """Return the launch of Ray's head node, for a cluster of `nodes` nodes.

    With `ray_environment` all of Ray listens on `settings.head_host` only, with one exception that Ray offers no
    setting for: the replica of the gateway opens an internal gRPC port on all interfaces. It requires the token, too.
    """
    options = _options(settings, HEAD, temp_dir, cpus_of_head(nodes)) | {
        "port": settings.ray_port,
        "dashboard-host": settings.dashboard_address,
        "dashboard-port": settings.dashboard_port,
        "include-dashboard": "true",
        # Ray Client cannot be disabled; it gets a free port, so that two clusters can share a machine.
        "ray-client-server-port": free_port(settings.head_host, set(named_ports(settings).values())),
    }
    # The entry point of the same installation, not the `ray` of the PATH.
    run_ray = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; sys.exit(main())"
    command = [sys.executable, "-c", run_ray, "start", "--head", *_flags(options)]
    return Launch(HEAD_LAUNCH, command, settings.home / "logs" / "ray.log")


def ray_node(settings: Settings, name: str, temp_dir: str) -> Launch:
    """Return the launch of a further node: a raylet with its agents and workers. Its ports are any free ones."""
    options = _options(settings, name, temp_dir, cpus_of_node()) | {"address": settings.ray_address}
    module = "cluster.join" if is_loopback(settings.head_host) else "ray.scripts.scripts"
    command = program(module, "start", *_flags(options))
    return Launch(name, command, settings.home / "logs" / f"{name}.log")


def _options(settings: Settings, name: str, temp_dir: str, cpus: int) -> dict[str, object]:
    return {
        "node-ip-address": settings.head_host,
        "node-name": name,
        # 0: any free port. Every other cluster of the machine uses the default range (10002-19999), too.
        "min-worker-port": 0,
        "max-worker-port": 0,
        # The agent serves the Jobs API. Its default port (52365) may be taken by an outgoing connection.
        "dashboard-agent-listen-port": 0,
        "num-cpus": cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": temp_dir,
        "log-style": "record",
    }


def _flags(options: dict[str, object]) -> list[str]:
    return ["--block", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items())]


def living_nodes(settings: Settings) -> set[str]:
    """Return the names of the nodes that Ray reports as alive; none while the dashboard does not accept our token.

    The dashboard may answer for many seconds before any node has joined.
    """
    return {name for name, node in _asked(settings).items() if node["state"] == "ALIVE"}


def describe_nodes(settings: Settings, record: ClusterRecord) -> list[NodeView]:
    """Return the states of all nodes of this cluster, including dead ones, in the order of their names."""
    known = _asked(settings)
    return [_view(record, name, known.get(name, {})) for name in recorded_nodes(record)]


def table(views: list[NodeView]) -> str:
    """Format the nodes as a table, one line each."""
    rows = [("NODE", "ID", "STATE", "CPUS", "ACTORS"), *(_row(view) for view in views)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(view: NodeView) -> tuple[str, ...]:
    state = f"{view.state}, stopped" if view.stopped else view.state
    return view.name, view.node_id[:SHOWN_ID_CHARS] or "-", state, f"{view.cpus:g}", ", ".join(view.carries) or "-"


def _view(record: ClusterRecord, name: str, node: dict[str, object]) -> NodeView:
    root = recorded_nodes(record)[name].process()
    return NodeView(
        name=name,
        node_id=str(node.get("id", "")),
        state=str(node.get("state", "unknown")),
        cpus=float(str(node.get("cpus", 0))),
        stopped=root is not None and root.status() == psutil.STATUS_STOPPED,
        carries=_carried(node_members(record, name)),
    )


def _carried(members: list[psutil.Process]) -> tuple[str, ...]:
    titles: Counter[str] = Counter()
    for process in members:
        try:
            words = " ".join(process.cmdline()).split()
        except psutil.Error:
            continue
        # `ray::RayTrainWorker.execute` while a method runs, `ray::ServeReplica:gateway:gateway` for a replica.
        if words and words[0].startswith("ray::"):
            titles[re.split(r"[:.(]", words[0].removeprefix("ray::"))[0]] += 1
    named = sorted((title, count) for title, count in titles.items() if title not in EVERY_NODE_HAS)
    return tuple(f"{title} x{count}" if count > 1 else title for title, count in named)


def _asked(settings: Settings) -> dict[str, dict[str, object]]:
    """Return Ray's nodes by name, each with `id`, `state` and `cpus`. Empty if Ray does not answer."""
    try:
        bearer = ray_token_file(settings).read_text()
        # The state API goes to the GCS; the summary of the dashboard's own page is some seconds older.
        answer = fetch(f"{settings.dashboard_url}/api/v0/nodes?limit=1000&detail=1", bearer)
        rows = json.loads(answer or b"{}")["data"]["result"]["result"]
        return {str(row["node_name"]): _node(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _node(row: dict[str, dict[str, object]]) -> dict[str, object]:
    cpus = (row.get("resources_total") or {}).get("CPU", 0)
    return {"id": row["node_id"], "state": row["state"], "cpus": cpus}
