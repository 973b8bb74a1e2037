"""Starts of the ranks without silent nodes: a node that does not answer is kept out, or its fate is waited for.

Ray counts a node whose link was cut as alive until its health checks have failed, 11 s with the variables of `steer up`
and about a minute without. A group that is placed on it meanwhile hangs: the reservation there has no deadline, ends
with the connection (after about 128 s, with Ray's defaults), and holds the resources of the healthy nodes as well.
So before every start each node is asked to answer.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray_jobs.driver import ray_internals
from ray_jobs.driver.ray_internals import NODE_ID_LABEL, ControllerCallback, WorkerGroupCallback

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 1.0
"""A raylet on a loaded machine answers in milliseconds, rarely in a second. To keep out a living node costs little:
it is only done where the other nodes have room."""

UNDECIDED_FOR_S = 70.0
"""Longest wait for the fate of silent nodes: longer than Ray needs to declare one dead by its own defaults."""

LOOK_EVERY_S = 0.2
MOST_THREADS = 64


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node that Ray counts as alive: whether it answers, and its free resources."""

    node_id: str
    address: str
    answers: bool
    free: Mapping[str, float]


def ranks_that_fit(nodes: Iterable[NodeRoom], per_rank: Mapping[str, float], strategy: str) -> int:
    """Return how many ranks the answering nodes have room for under a placement strategy."""
    counts = [_count(node.free, per_rank) for node in nodes if node.answers]
    if strategy == "STRICT_PACK":
        return max(counts, default=0)
    if strategy == "STRICT_SPREAD":
        return sum(count > 0 for count in counts)
    return sum(counts)


def _count(free: Mapping[str, float], per_rank: Mapping[str, float]) -> int:
    # Ray counts in units of 1/10000.
    return min((int(free.get(name, 0.0) / amount + 1e-4) for name, amount in per_rank.items() if amount > 0), default=0)


def keep_out(nodes: Sequence[NodeRoom], labels: Mapping[str, str]) -> dict[str, str] | None:
    """Return the label selector that keeps ranks from the silent nodes; None if `labels` choose a node by its id."""
    if NODE_ID_LABEL in labels:
        return None
    return dict(labels) | {NODE_ID_LABEL: f"!in({', '.join(node.node_id for node in nodes if not node.answers)})"}


class SilentNodes(ControllerCallback, WorkerGroupCallback):
    """Ray Train callback that starts no rank on a node that does not answer.

    If the other nodes have room for the ranks, the group is started there at once. If not, it waits until the silent
    nodes answer or Ray has declared them dead. An elastic run always waits: Ray Train chooses the number of ranks
    before it starts them, and counts silent nodes.
    """

    def __init__(
        self,
        elastic: bool,
        look: Callable[[], list[NodeRoom]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._elastic, self._look, self._sleep, self._clock = elastic, look or look_at_nodes, sleep, clock

    def before_controller_execute_failure_decision(self, *_: Any, **__: Any) -> None:
        """Wait for the fate of silent nodes before Ray Train chooses another number of ranks."""
        if self._elastic:
            self._wait(lambda nodes: False)

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """Return a label selector without the silent nodes, or None if all nodes answer."""
        if isinstance(scaling_config.label_selector, list):  # one for each rank, and Ray Train would replace them all
            self._wait(lambda nodes: False)
            return None
        labels = scaling_config.label_selector or {}
        per_rank, strategy = ray_internals.resources_per_rank(scaling_config), scaling_config.placement_strategy
        silent = self._wait(
            lambda nodes: NODE_ID_LABEL not in labels and ranks_that_fit(nodes, per_rank, strategy) >= num_workers
        )
        return keep_out(silent, labels) if silent else None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Have the ranks fetch their training function from this node, not from one that may be silent."""
        ray_internals.store_again(worker_group_context)

    def _wait(self, may_start: Callable[[list[NodeRoom]], bool]) -> list[NodeRoom]:
        """Wait until all living nodes answer, or until `may_start` without the silent ones; return these."""
        began_s, has_told = self._clock(), False
        while True:
            nodes = self._look()
            silent = [node for node in nodes if not node.answers]
            if not silent:
                return []
            names = ", ".join(f"{node.address} ({node.node_id[:8]})" for node in silent)
            if may_start(nodes):
                log.warning("starting the ranks without the nodes that do not answer: %s", names)
                return silent
            if self._clock() - began_s >= UNDECIDED_FOR_S:
                log.warning("these nodes neither answer nor are dead after %g s: %s", UNDECIDED_FOR_S, names)
                return silent
            if not has_told:
                log.warning("waiting until these nodes answer or are declared dead by Ray: %s", names)
                has_told = True
            self._sleep(LOOK_EVERY_S)


def look_at_nodes() -> list[NodeRoom]:
    """Ask every node that Ray counts as alive to answer a health check, all at once."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max_workers=min(MOST_THREADS, max(1, len(alive)))) as pool:
        answers = list(pool.map(lambda node: ray_internals.answers(node, ANSWER_WITHIN_S), alive))
    free = ray_internals.free_resources_by_node()
    return [
        NodeRoom(node["NodeID"], node["NodeManagerAddress"], answering, free.get(node["NodeID"], {}))
        for node, answering in zip(alive, answers, strict=True)
    ]
