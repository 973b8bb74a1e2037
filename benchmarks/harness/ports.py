"""Free ports for ranks and clusters of benchmarks and tests."""

import secrets
import socket

PORT_RANGE = (21_000, 32_000)
"""Below the ports that Linux hands to outgoing connections: one of those may be taken before it is listened on."""


def free_ports(count: int) -> list[int]:
    """Return free ports; random ones, so that two processes that choose at once rarely choose the same."""
    first, last = PORT_RANGE
    ports: list[int] = []
    while len(ports) < count:
        port = first + secrets.randbelow(last - first)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports += [port] if port not in ports else []
    return ports


def free_port() -> int:
    """Return one free port."""
    return free_ports(1)[0]
