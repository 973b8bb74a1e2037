"""`steer deploy` on a cluster that was started by hand, with Ray's token: what it makes, and that it is idempotent."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from benchmarks.network.machines import Machine, Rig
from benchmarks.network.ray_start import ray_start
from benchmarks.network.requirements import reason_against

REASON = reason_against()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
HOME = {"STEERWAY_HOME": "/srv/shared/home"}
ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).status)"


@pytest.fixture(scope="module")
def head() -> Iterator[Machine]:
    with Rig() as rig:
        head = rig.machine("head")
        ray_start(head, "head", cpus=2, env=TOKEN)
        yield head


def steer(head: Machine, *words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return head.run("python", "-m", "control_plane.cli.main", *words, env=HOME | environ, timeout_s=120)


def deploy(head: Machine, *words: str) -> "subprocess.CompletedProcess[str]":
    return steer(head, "deploy", "--address", f"{head.address}:6379", *words, **TOKEN)


def status(head: Machine, url: str) -> str:
    return head.run("python", "-ISc", ASK, url).stdout.strip()


def new_console(head: Machine, before: list[int]) -> bool:
    """Whether a console runs, and none of those before: they end with their supervisor, a moment later."""
    pids = {process.pid for process in head.processes("-m ui")}
    return bool(pids) and pids.isdisjoint(before)


def test_without_rays_token_or_on_a_wrong_port_it_is_one_sentence_within_seconds(head: Machine) -> None:
    began_s = time.monotonic()
    without = steer(head, "deploy", "--address", f"{head.address}:6379")
    wrong = steer(head, "deploy", "--address", f"{head.address}:6380")
    assert time.monotonic() - began_s < 20
    assert (without.returncode, wrong.returncode) == (4, 1)
    assert without.stderr.startswith(f"steer: the Ray cluster at {head.address}:6379 requires its token")
    assert wrong.stderr.startswith(f"steer: no Ray cluster answers at {head.address}:6380")
    assert len(without.stderr.splitlines()) == len(wrong.stderr.splitlines()) == 1


def test_it_brings_up_gateway_and_console_once_and_removes_them(head: Machine) -> None:
    first = deploy(head, "--json")
    assert first.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert outcome["changed"]
    lacks = " ".join(finding["why"] for finding in outcome["lacks"])
    assert "RAY_grpc_client_keepalive_time_ms is not set" in lacks
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH is not set" in lacks
    assert [finding["what"] for finding in outcome["lacks"] if finding["level"] == "failed"] == []
    assert status(head, outcome["gateway"] + "/api/v1/health") == "200"

    replicas = [process.pid for process in head.processes("ray::ServeReplica")]
    consoles = [process.pid for process in head.processes("-m ui")]
    assert len(replicas) == 1
    assert consoles
    again = deploy(head, "--json")
    assert json.loads(again.stdout)["changed"] is False
    assert [process.pid for process in head.processes("ray::ServeReplica")] == replicas
    assert [process.pid for process in head.processes("-m ui")] == consoles

    nodes = steer(head, "nodes", "--json")
    assert nodes.returncode == 0, nodes.stderr
    (node,) = json.loads(nodes.stdout)["nodes"]
    assert node["is_head"]
    assert node["release"] is not None

    head.kill("ray::ConsoleSupervisor")
    deadline = time.monotonic() + 60
    while status(head, outcome["console"] + "/_stcore/health") != "200" or not new_console(head, consoles):
        assert time.monotonic() < deadline, "the console was not restarted"
        time.sleep(0.5)

    removed = deploy(head, "--delete", "--json")
    assert json.loads(removed.stdout)["removed"] is True
    assert head.processes("-m ui") == head.processes("ray::ServeReplica") == head.processes("ray::ProxyActor") == []
    assert json.loads(deploy(head, "--delete", "--json").stdout)["removed"] is False
    kept = head.run("ls", "/srv/shared/home").stdout.split()
    assert {"tokens", "tokens.json", "checkpoint-key"} <= set(kept)
    assert "deployment.json" not in kept
