"""Ports for tests. Those of clusters are from below the ones that the kernel gives to outgoing connections.

Whoever starts a cluster chooses its ports long before they are listened on. Tests that run beside each other open
connections all the while; none of them gets a cluster's port.
"""

import socket

from benchmarks.harness.ports import PORT_RANGE, free_ports

__all__ = ["FIRST", "LAST", "free_port", "free_ports"]

FIRST, LAST = PORT_RANGE
"""Ray's workers take 10002 to 19999 unless they are told otherwise."""


def free_port() -> int:
    """One that the kernel gives, for whoever listens on it at once. Ranks and gateways of tests take many of them, and
    none from the clusters' ports: Ray Serve cannot listen on a port that was used in the last minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
