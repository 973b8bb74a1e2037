"""Settings with ports of their own and a home of their own."""

import socket
from pathlib import Path

import pytest

from control_plane.config import Settings


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    """A machine on which nothing is up."""
    gateway, console, ray, dashboard = free_ports(4)
    return Settings(
        home=tmp_path / "home", gateway_port=gateway, console_port=console, ray_port=ray, dashboard_port=dashboard
    )
