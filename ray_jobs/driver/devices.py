"""Detection of GPUs in a cluster: on its nodes, on nodes that are down, and in autoscaler groups at 0 nodes.

A cluster that declares GPUs is never trained on CPUs because too few are free: a run that was started while a node was
down would stay on CPUs. It waits for the GPUs, and Ray's log says for which resources.
"""

import logging
from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)

Resources = Mapping[str, float]


def declares_gpus(nodes: Iterable[Resources], groups: Iterable[tuple[Resources, int]]) -> bool:
    """Return whether any node, alive or not, or any autoscaler group has a GPU.

    A group is the resources of one of its nodes, and the largest number of its nodes; -1 is any number.
    """
    return any(node.get("GPU", 0) > 0 for node in nodes) or any(
        most != 0 and resources.get("GPU", 0) > 0 for resources, most in groups
    )


def known_nodes() -> list[dict[str, float]]:
    """Return the resources of every node that this cluster knows, including those that are down."""
    import ray

    from ray_jobs.driver import ray_internals

    try:
        return ray_internals.node_resources()
    except Exception as error:
        log.warning("Ray does not report the resources of nodes that are down (%s): only living nodes count", error)
        return [node["Resources"] for node in ray.nodes()]


def node_groups() -> list[tuple[dict[str, float], int]]:
    """Return the groups of nodes that this cluster's autoscaler may start; none without an autoscaler.

    Ray's autoscaler reports them to the cluster; only a private interface of Ray returns them.
    """
    from ray_jobs.driver import ray_internals

    try:
        return ray_internals.autoscaler_groups()
    except Exception as error:
        log.warning("Ray does not report the node groups of its autoscaler (%s): only known nodes count", error)
        return []
