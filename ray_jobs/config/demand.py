"""Demand of a run: the resources, labels and placement of its ranks, from its config."""

from collections.abc import Iterable

from control_plane.core.rules.capacity import ACCELERATOR, Demand, Node, NodeGroup
from ray_jobs.config.run_config import RunConfig


def demand_of(config: RunConfig, gpu: bool) -> Demand:
    """Return what the ranks need; with `gpu`, one GPU each."""
    scaling = config.scaling
    least, most = scaling.bounds
    accelerator = {f"{ACCELERATOR}{scaling.accelerator_type}": 0.001} if scaling.accelerator_type else {}
    return Demand(
        count=least,
        most=most,
        per_rank={"CPU": float(scaling.cpus_per_rank)}
        | ({"GPU": 1.0} if gpu else {})
        | dict(scaling.resources_per_rank)
        | accelerator,
        placement=scaling.placement,
        strict=scaling.strict,
        labels=scaling.labels,
    )


def uses_gpus(config: RunConfig, nodes: Iterable[Node], groups: Iterable[NodeGroup]) -> bool:
    """Return whether ranks get GPUs: as the config says, or for `auto`, if the cluster declares any.

    A cluster that declares GPUs is never trained on CPUs because too few are free: a run that was started while a node
    was down would stay on CPUs. It waits for the GPUs. Nodes that are down count, and autoscaler groups at 0 nodes.
    """
    wanted = config.scaling.use_gpu
    if wanted != "auto":
        return bool(wanted)
    return any(node.total.get("GPU", 0) > 0 for node in nodes) or any(
        group.max_nodes != 0 and group.resources.get("GPU", 0) > 0 for group in groups
    )
