"""Ports for tests: from below those that the kernel gives to outgoing connections.

Whoever starts a cluster chooses its ports long before they are listened on. Tests that run beside each other open
connections all the while; none of them gets a port from here.
"""

import random
import socket

FIRST, LAST = 20_000, 31_999
"""Linux gives 32768 and more to outgoing connections; Ray's workers take 10002 to 19999 unless they are told."""

_chance = random.SystemRandom()  # a test that seeds `random` would choose what the one beside it has chosen


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
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
    """One of them."""
    return free_ports(1)[0]
