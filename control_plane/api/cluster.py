"""Messages about a cluster: its nodes, and the findings of `steer doctor`."""

from typing import Literal, Protocol

from control_plane.core.model.intent_base import Message

Level = Literal["ok", "warning", "failed"]


class NodeInfo(Message):
    """One Ray node. `release`: Steerway's release there; None if it is not known (yet). `actors`: titles and counts."""

    name: str
    node_id: str
    address: str
    state: str
    is_head: bool = False
    resources: dict[str, float] = {}
    release: str | None = None
    actors: tuple[str, ...] = ()


class ClusterView(Message):
    """Answer of `GET /cluster`. `free`: resources that no run and no service holds now, over all nodes."""

    ray: str
    release: str
    nodes: tuple[NodeInfo, ...]
    resources: dict[str, float] = {}
    free: dict[str, float] = {}


class Finding(Message):
    """Result of one check: of what, how it went, why, and what to do about it."""

    level: Level
    what: str
    why: str = ""
    action: str = ""


class ClusterChecks(Message):
    """Answer of `GET /cluster/checks`."""

    findings: tuple[Finding, ...]


class ClusterPort(Protocol):
    """Look at the cluster that the gateway runs on, which it does not import."""

    async def view(self) -> ClusterView:
        """Return the nodes and resources. Raises `Unavailable`."""
        ...

    async def check(self) -> ClusterChecks:
        """Check every node; takes seconds. Raises `Unavailable`."""
        ...
