"""State of the Ray cluster: its nodes with what is free on them, autoscaler groups, and placement groups by job.

Reads with private interfaces of Ray (read in Ray 2.60.0), which work in a process that has joined the cluster and, by
address, in one that has not: joining takes a second and adds a job to Ray's list.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from control_plane.core.model.errors import Unavailable
from control_plane.core.rules.capacity import ClusterState, Node, NodeGroup

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
SUBMISSION_ID = "job_submission_id"
"""Key in the metadata of a job that was submitted to Ray's Jobs API."""

Value = TypeVar("Value")


class ClusterReader:
    """Reader of one cluster's state."""

    def __init__(self, address: str | None = None) -> None:
        """Read the cluster at `address` (host:port), or the one that this process has joined."""
        self._address = address
        self._state: Any = None
        self._client: Any = None

    def read(self) -> ClusterState:
        """Return the cluster's state. Raises `Unavailable`."""
        try:
            self._connect()
            return ClusterState(tuple(self.nodes()), tuple(self.groups()), self.placed_jobs())
        except Unavailable:
            raise
        except Exception as error:
            self._state = self._client = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unavailable(f"the Ray cluster does not report its resources: {reason}") from error

    def _connect(self) -> None:
        if self._state is not None:
            return
        import ray
        from ray._private import state, worker

        if self._address is None:
            connected: Any = worker.global_worker
            self._state, self._client = state.state, connected.gcs_client
            return
        raylet: Any = ray._raylet
        options = raylet.GcsClientOptions.create(
            self._address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
        self._client = raylet.GcsClient(address=self._address)
        own: Any = state.GlobalState()
        own._initialize_global_state(options)
        self._state = own

    def nodes(self) -> list[Node]:
        """Return every node, alive or down. A node that has come back under its name counts once."""
        self._connect()
        alive_state = 0  # GcsNodeInfo.ALIVE
        free = self._state.available_resources_per_node()
        listed = []
        for node_id, info in self._client.get_all_node_info(timeout=TIMEOUT_S).items():
            alive = int(info.state) == alive_state
            key = node_id.hex() if hasattr(node_id, "hex") else str(node_id)
            name = str(info.node_name or info.node_manager_address)
            total = plain_resources(info.resources_total)
            unused = plain_resources(free.get(key, {})) if alive else {}
            listed.append(Node(name, total, unused, dict(info.labels), alive))
        return once_by_name(listed)

    def groups(self) -> list[NodeGroup]:
        """Return the groups of nodes that the autoscaler may start; none without one, or if Ray does not tell."""
        self._connect()
        return _or_else(lambda: groups_in(self._state.get_cluster_config()), [], "node groups of its autoscaler")

    def placed_jobs(self) -> frozenset[str]:
        """Return the submission ids of the jobs whose ranks have their resources, by their placement groups."""
        self._connect()
        return _or_else(self._placed_jobs, frozenset(), "placement groups")

    def _placed_jobs(self) -> frozenset[str]:
        from ray.core.generated import gcs_pb2

        group: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
        job: Any = gcs_pb2.JobTableData  # type: ignore[attr-defined]
        accessor = self._state._connect_and_get_accessor()
        groups = [group.FromString(each) for each in accessor.get_placement_group_table()]
        placed = {each.creator_job_id for each in groups if each.state == group.CREATED}
        tables = accessor.get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
        jobs = [job.FromString(each) for each in tables]
        return frozenset(str(each.config.metadata.get(SUBMISSION_ID, "")) for each in jobs if each.job_id in placed)


def groups_in(config: Any) -> list[NodeGroup]:
    """Return the groups in the autoscaler's report (`autoscaler_pb2.ClusterConfig`); Ray has no labels in it."""
    if config is None:
        return []
    return [
        NodeGroup(str(group.name or "workers"), plain_resources(group.resources), int(group.max_count))
        for group in config.node_group_configs
    ]


def once_by_name(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes, without those that are down and whose name another one bears."""
    by_name = dict[str, Node]()
    alive = []
    for node in nodes:
        if node.alive:
            alive.append(node)
        else:
            by_name[node.name] = node
    taken = {node.name for node in alive}
    return alive + [node for name, node in by_name.items() if name not in taken]


def plain_resources(resources: Any) -> dict[str, float]:
    """Return resources without those that Ray adds for placement groups and for a node's own address."""
    return {
        str(name): float(amount)
        for name, amount in dict(resources).items()
        if "_group_" not in name and not name.startswith(("node:", "bundle_group_"))
    }


def _or_else(read: Callable[[], Value], otherwise: Value, what: str) -> Value:
    try:
        return read()
    except Exception as error:
        log.warning("Ray does not report the %s (%s)", what, error)
        return otherwise
