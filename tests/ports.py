"""Ports for tests. Those of clusters are from below the ones that the kernel gives to outgoing connections.

Whoever starts a cluster chooses its ports long before they are listened on. Tests that run beside each other open
connections all the while; none of them gets a cluster's port.
"""

import random
import socket

FIRST, LAST = 20_000, 31_999
"""Linux gives 32768 and more to outgoing connections; Ray's workers take 10002 to 19999 unless they are told."""

_chance = random.SystemRandom()  # a test that seeds `random` would choose what the one beside it has chosen


def free_ports(count: int) -> list[int]:
    """Ports for a cluster that nobody uses at this moment."""
    found: list[int] = []
    while len(found) < count:
        port = _chance.randint(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found += [port] if port not in found else []
    return found


def free_port() -> int:
    """One that the kernel gives, for whoever listens on it at once. Ranks and gateways of tests take many of them, and
    none from the clusters' ports: Ray Serve cannot listen on a port that was used in the last minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
