"""A drained node makes the run save, once, however many ranks notice it."""

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from control_plane.core.model.commands import SaveCheckpoint
from control_plane.core.model.records import CommandAccepted, RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.metrics import MetricsStore
from ray_jobs.driver import preemption

NODE, OTHER = "a" * 56, "b" * 56


@pytest.fixture
def server(tmp_path: Path) -> ControlServer:
    created = RunCreated(run="drained", name="drained", author="test", config_sha256="0" * 64)
    return ControlServer(created, Journal.open(tmp_path / "journal"), MetricsStore(tmp_path / "metrics"))


def accepted(server: ControlServer) -> list[CommandAccepted]:
    entries = asyncio.run(server.tail(0, 100, 0))
    return [entry.record for entry in entries if isinstance(entry.record, CommandAccepted)]


def test_drained_node_two_ranks_notice_and_one_checkpoint_is_asked_for(server: ControlServer) -> None:
    deadline_ms = int((time.time() + 30) * 1000)
    for _ in range(2):
        asyncio.run(preemption.request_checkpoint(server, "drained", NODE, deadline_ms))
    (asked,) = accepted(server)
    assert isinstance(asked.command.intent, SaveCheckpoint)
    assert "drained" in (asked.command.reason or "")
    assert asked.command.author == "steerway"


def test_watch_other_nodes_drain_is_none_of_ours(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "LOOK_EVERY_S", 0.01)
    looked, draining, asked = threading.Semaphore(0), {OTHER: 0}, threading.Event()

    def look() -> Mapping[str, int]:
        looked.release()
        return draining

    def connect() -> ControlServer:
        asked.set()
        return server

    preemption.watch(NODE, "drained", connect, look)
    assert all(looked.acquire(timeout=10) for _ in range(5))
    assert not asked.is_set()
    draining[NODE] = 12345
    assert asked.wait(10)
    for _ in range(5):
        assert looked.acquire(timeout=10)
    assert len(accepted(server)) == 1
