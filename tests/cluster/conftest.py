"""Settings with ports of their own and a home of their own."""

from pathlib import Path

import pytest

from control_plane.config import Settings
from tests.ports import free_ports


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    """A machine on which nothing is up."""
    gateway, console, ray, dashboard = free_ports(4)
    return Settings(
        home=tmp_path / "home", gateway_port=gateway, console_port=console, ray_port=ray, dashboard_port=dashboard
    )
