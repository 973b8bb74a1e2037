"""Client of the routes about the cluster."""

from control_plane.api.cluster import ClusterChecks, ClusterView
from control_plane.client.answers import parse
from control_plane.client.connection import GatewayConnection

VIEW_WITHIN_S = 30.0
CHECK_WITHIN_S = 120.0
"""Longer than the gateway waits for a node's probe, which starts a process and may import torch."""


class ClusterReader(GatewayConnection):
    """Reads the state of the gateway's cluster."""

    def cluster(self) -> ClusterView:
        """Return the cluster's nodes and resources. Raises `Unavailable`."""
        return parse(ClusterView, self._request("GET", "/cluster", timeout=VIEW_WITHIN_S))

    def cluster_checks(self) -> ClusterChecks:
        """Check every node of the cluster. Raises `NotAllowed`, `Unavailable`."""
        return parse(ClusterChecks, self._request("GET", "/cluster/checks", timeout=CHECK_WITHIN_S))
