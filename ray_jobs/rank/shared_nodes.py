"""Ranks that share a node although the config asks for a spread: known only when they have been placed.

A spread is as wide as there is room for (Ray's SPREAD); `scaling.strict` refuses a narrower one before the start.
"""

import logging

from control_plane.core.model.records import SHARED_NODES, Readback
from ray_jobs.process.collectives import Collectives
from ray_jobs.process.context import node_name

log = logging.getLogger(__name__)


def facts(collectives: Collectives) -> Readback:
    """Collective. Return a fact that says which ranks share a node; empty if none do."""
    sentence = describe_shared(collectives.all_gather(node_name()))
    if sentence is None:
        return {}
    log.warning("placement: spread was not had: %s", sentence)
    return {SHARED_NODES: sentence}


def describe_shared(nodes: list[str]) -> str | None:
    """Return a sentence for ranks on these nodes, by rank: "2 ranks on 1 node: ranks 0, 1 on node-1"; or None."""
    on = {node: [rank for rank, other in enumerate(nodes) if other == node] for node in dict.fromkeys(nodes)}
    shared = {node: ranks for node, ranks in on.items() if len(ranks) > 1}
    if not shared:
        return None
    told = "; ".join(f"ranks {', '.join(map(str, ranks))} on {node}" for node, ranks in shared.items())
    return f"{len(nodes)} ranks on {len(on)} {'node' if len(on) == 1 else 'nodes'}: {told}"
