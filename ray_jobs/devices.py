"""Whether a cluster has GPUs, or would have them: its nodes', those of nodes that are down, and of pools at 0 nodes.

Too few GPUs at this moment are no reason to train on CPUs: nobody who declares GPUs means that, and a run that was
started while a node was away would stay on CPUs for good. It waits for them, and Ray says for what.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)

Resources = Mapping[str, float]


def declares_gpus(nodes: Iterable[Resources], groups: Iterable[tuple[Resources, int]]) -> bool:
    """Whether any node that the cluster knows, alive or not, or any group of nodes that it may start has a GPU.

    A group is the resources of one of its nodes, and how many nodes it may have at most; -1 is any number.
    """
    return any(node.get("GPU", 0) > 0 for node in nodes) or any(
        most != 0 and resources.get("GPU", 0) > 0 for resources, most in groups
    )


def known_nodes() -> list[dict[str, float]]:
    """The resources of every node that this cluster knows, also of those that are down."""
    import ray

    try:
        # `ray.nodes` leaves out what a node had when it died.
        from ray._private import worker

        ours: Any = worker.global_worker
        return [dict(node.resources_total) for node in ours.gcs_client.get_all_node_info().values()]
    except Exception as error:
        log.warning("Ray does not say what the nodes had that are down (%s): only those that are up count", error)
        return [node["Resources"] for node in ray.nodes()]


def node_groups() -> list[tuple[dict[str, float], int]]:
    """The groups of nodes that this cluster's autoscaler may start; none where there is no autoscaler.

    Ray's autoscaler reports them to the cluster; only an inner interface of Ray's tells them.
    """
    try:
        from ray._private import state

        cluster: Any = state.state.get_cluster_config()
    except Exception as error:
        log.warning("Ray does not say which nodes its autoscaler may start (%s): only known nodes count", error)
        return []
    if cluster is None:
        return []
    return [(dict(group.resources), int(group.max_count)) for group in cluster.node_group_configs]
