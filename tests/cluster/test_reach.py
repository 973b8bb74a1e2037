"""Look at an existing Ray: whatever is wrong becomes one sentence, within seconds."""

import json
import socket
import subprocess
import time

import pytest

from cluster import reach
from control_plane.core.model.errors import Invalid, NotAllowed, Unavailable

HEAD = {"node_id": "a1", "address": "127.0.0.1", "name": "head", "is_head": True}
WORKER = {"node_id": "b2", "address": "192.0.2.7", "name": "worker", "is_head": False}


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "head:port", "head:0", "head:70000", "ray://h:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(Invalid, match="HOST:PORT"):
        reach.split(address)


def test_host_and_port_are_split() -> None:
    assert reach.split("head.example:6379") == ("head.example", 6379)
    assert reach.split("[::1]:6379") == ("::1", 6379)


def test_a_closed_port_is_said_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="no Ray cluster answers"):
        reach.reach(f"127.0.0.1:{port}")
    assert time.monotonic() - began_s < 4


def test_a_server_that_is_not_ray_is_said_within_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ANSWER_WITHIN_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(Unavailable, match="not Ray's GCS"):
        reach.reach(f"127.0.0.1:{mute.getsockname()[1]}")


def answered(monkeypatch: pytest.MonkeyPatch, answer: str, stderr: str = "") -> reach.ExistingRay:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, answer, stderr))
    with socket.create_server(("127.0.0.1", 0)) as server:
        return reach.reach(f"127.0.0.1:{server.getsockname()[1]}")


def test_the_node_on_this_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered(monkeypatch, json.dumps({"nodes": [WORKER, HEAD]}))
    assert (found.head.name, found.here.name, len(found.nodes)) == ("head", "head", 2)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ({"error": "token"}, NotAllowed, "requires its token"),
        ({"error": "it is tired"}, Unavailable, "it is tired"),
        ({"nodes": [HEAD | {"address": "192.0.2.1"}]}, Unavailable, r"no node of .*192\.0\.2\.1"),
        ({"nodes": [WORKER]}, Unavailable, "no living head"),
    ],
)
def test_each_reason_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: object, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        answered(monkeypatch, json.dumps(answer))


def test_a_client_that_breaks_is_named_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="cannot be asked: ImportError: no ray"):
        answered(monkeypatch, "", "Traceback\nImportError: no ray\n")
