"""Look at the Ray cluster that this process belongs to: nodes, resources, releases, and the checks of `steer doctor`.

Implements `api.cluster.ClusterPort`. Each node is asked by an actor of its own, which is removed afterwards.
"""

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from control_plane.actor.cluster_findings import NodeAnswer, findings_of
from control_plane.actor.cluster_state import plain_resources
from control_plane.actor.control_actor import HEAD
from control_plane.actor.node_probe import NodeProbe
from control_plane.api.cluster import ClusterChecks, ClusterView, NodeInfo
from control_plane.api.versions import release
from control_plane.core.model.characters import last_line
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.storage.probe import held_probe
from control_plane.storage.proof import write_proof

RELEASES_WITHIN_S = 4.0
"""Wait for the release of nodes that were not asked yet; the next view has the later ones."""

CHECK_WITHIN_S = 60.0
"""Longest wait for one node's probe: a fresh process there, and torch on a node with GPUs."""

LIST_WITHIN_S = 5
MAX_ACTORS = 1000
EVERY_NODE_HAS = frozenset(["NodeProbe"])
SHOWN_ID_CHARS = 8


class RayCluster:
    """The cluster as this process sees it. `home`: this installation's folder; `signing_key`: its key."""

    def __init__(self, home: Path, signing_key: Path) -> None:
        self._home, self._signing_key = home, signing_key
        self._releases: dict[str, str] = {}

    async def view(self) -> ClusterView:
        """Return nodes and resources. Raises `Unavailable`."""
        nodes = await _in_thread(ray.nodes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASES_WITHIN_S):
                unknown = [node for node in nodes if node["Alive"] and node["NodeID"] not in self._releases]
                await asyncio.gather(*(self._ask_release(node["NodeID"]) for node in unknown))
        actors = await _in_thread(_actors)
        return ClusterView(
            ray=ray.__version__,
            release=release("unknown"),
            nodes=tuple(
                _info(node, self._releases.get(node["NodeID"]), actors.get(node["NodeID"], ())) for node in nodes
            ),
            resources=plain_resources(await _in_thread(ray.cluster_resources)),
            free=plain_resources(await _in_thread(ray.available_resources)),
        )

    async def check(self) -> ClusterChecks:
        """Check every living node; takes seconds. Raises `Unavailable`."""
        view = await self.view()
        living = [node for node in view.nodes if node.state == "ALIVE"]
        try:
            with held_probe(self._home) as folder:
                proof = write_proof(folder, self._signing_key).model_dump()
                about = (proof, str(folder), str(self._signing_key))
                answers = await asyncio.gather(*(self._check_node(node, about) for node in living))
        except SteerwayError as error:
            raise Unavailable(f"the storage cannot be checked: {error.reason}") from None
        return ClusterChecks(findings=findings_of(view, answers))

    async def _ask_release(self, node_id: str) -> None:
        with probe_on(node_id) as probe, contextlib.suppress(RayError):
            report = await probe.report.remote(False)
            self._releases[node_id] = report.release

    async def _check_node(self, node: NodeInfo, about: tuple[Any, ...]) -> NodeAnswer:
        with probe_on(node.node_id) as probe:
            try:
                async with asyncio.timeout(CHECK_WITHIN_S):
                    report = await probe.report.remote(node.resources.get("GPU", 0) > 0)
                    self._releases[node.node_id] = report.release
                    offset_s, within_s = await _clock_difference(probe)
                    storage = await probe.storage.remote(*about)
                    return NodeAnswer(node, report, tuple(storage), offset_s, within_s)
            except TimeoutError:
                return NodeAnswer(node, why=f"it did not answer within {CHECK_WITHIN_S:g} s")
            except RayError as error:
                return NodeAnswer(node, why=cause_of(error))


async def _clock_difference(probe: Any) -> tuple[float, float]:
    """Return by how much the node's clock is ahead of this one, and the uncertainty, of the quickest of some calls."""
    trips = []
    for _ in range(5):
        sent_s = time.time()
        there_s = await probe.clock.remote()
        back_s = time.time()
        trips.append(((back_s - sent_s) / 2, there_s - (sent_s + back_s) / 2))
    within_s, offset_s = min(trips)
    return offset_s, within_s


@contextlib.contextmanager
def probe_on(node_id: str) -> Any:
    """Start a probe on a node, and remove it afterwards."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    probe: Any = ray.remote(NodeProbe).options(num_cpus=0, max_restarts=0, scheduling_strategy=where).remote()
    try:
        yield probe
    finally:
        ray.kill(probe)


async def _in_thread(ask: Any) -> Any:
    try:
        return await asyncio.to_thread(ask)
    except (RayError, RuntimeError, OSError) as error:
        raise Unavailable(f"Ray does not answer: {cause_of(error)}") from None


def _actors() -> dict[str, tuple[str, ...]]:
    """Return the titles of the actors on each node, with their counts; empty if Ray's state API does not answer."""
    from ray.util.state import list_actors

    counts: dict[str, Counter[str]] = {}
    try:
        for actor in list_actors(filters=[("state", "=", "ALIVE")], limit=MAX_ACTORS, timeout=LIST_WITHIN_S):
            if actor.class_name not in EVERY_NODE_HAS:
                title = actor.class_name.split(":", 1)[0].rsplit(".", 1)[-1]
                counts.setdefault(str(actor.node_id), Counter())[title] += 1
    except Exception:  # it raises many kinds, and what runs where is only informative
        return {}
    return {
        node: tuple(f"{title} x{count}" if count > 1 else title for title, count in sorted(titles.items()))
        for node, titles in counts.items()
    }


def _info(node: dict[str, Any], its_release: str | None, actors: tuple[str, ...]) -> NodeInfo:
    resources = node.get("Resources") or {}
    return NodeInfo(
        name=node.get("NodeName") or node["NodeManagerAddress"],
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        state="ALIVE" if node["Alive"] else "DEAD",
        is_head=HEAD in resources,
        resources=plain_resources(resources),
        release=its_release,
        actors=actors,
    )


def cause_of(error: BaseException) -> str:
    """Return the cause of an error of Ray: its last line; the others are the way there."""
    return last_line(str(error)) or type(error).__name__
