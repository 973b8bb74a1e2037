"""A cluster of two nodes, for the gateway's tests."""

from control_plane.api.cluster import ClusterChecks, ClusterView, Finding, NodeInfo

VIEW = ClusterView(
    ray="2.60.0",
    release="0.2.0",
    nodes=(
        NodeInfo(name="head", node_id="a1", address="10.0.0.1", state="ALIVE", is_head=True, release="0.2.0"),
        NodeInfo(name="worker", node_id="b2", address="10.0.0.2", state="DEAD", resources={"CPU": 2.0}),
    ),
    resources={"CPU": 2.0},
    free={"CPU": 1.0},
)


class FakeCluster:
    """Answers without Ray."""

    async def view(self) -> ClusterView:
        return VIEW

    async def check(self) -> ClusterChecks:
        return ClusterChecks(findings=(Finding(level="warning", what="Ray", why="a node is dead"),))
