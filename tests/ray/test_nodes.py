"""Several nodes on one machine: one dies and Ray knows, one joins in its place, and `down` leaves nothing of any."""

from pathlib import Path

import psutil
import pytest

from cluster.nodes import node_members
from cluster.processes import find_members
from cluster.record import read_record
from tests.ray.cluster import running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def listening_elsewhere(processes: list[psutil.Process]) -> list[str]:
    """Addresses beyond the loopback that these processes listen on."""
    listening = [end for process in processes for end in process.net_connections("tcp") if end.status == "LISTEN"]
    hosts = [end.laddr.ip.removeprefix("::ffff:") for end in listening]
    return [host for host in hosts if not host.startswith("127.")]


def test_a_node_dies_another_joins_and_nothing_is_left(tmp_path: Path) -> None:
    with running(tmp_path / "home", nodes=3) as cluster:
        record = read_record(cluster.settings)
        assert record is not None
        before = cluster.nodes()
        assert {name: node["state"] for name, node in before.items()} == dict.fromkeys(
            ("node-1", "node-2", "node-3"), "ALIVE"
        )
        assert before["node-1"]["cpus"] == 0 < before["node-2"]["cpus"]
        assert "ServeReplica" in before["node-1"]["carries"]
        assert listening_elsewhere(node_members(record, "node-2")) == []

        killed = cluster.command("cluster.chaos", "kill-node", "node-2")
        assert killed.returncode == 0, killed.stderr
        assert node_members(record, "node-2") == []
        wait_for("the death of node-2", lambda: cluster.nodes()["node-2"]["state"] == "DEAD", 60)

        joined = cluster.command("cluster.local", "add-node")
        assert joined.returncode == 0, joined.stderr
        states = {name: node["state"] for name, node in cluster.nodes().items()}
        assert states == {"node-1": "ALIVE", "node-2": "DEAD", "node-3": "ALIVE", "node-4": "ALIVE"}
        assert [cluster.nodes()[name]["node_id"] for name in before] == [node["node_id"] for node in before.values()]

        silent = cluster.command("cluster.chaos", "partition", "node-3")
        assert silent.returncode == 0, silent.stderr
        assert cluster.nodes()["node-3"]["stopped"]
        record = read_record(cluster.settings)
        assert record is not None
    assert find_members(record.cluster, record.processes.values(), record.temp_dir) == []
    assert not Path(record.temp_dir).exists()
    assert read_record(cluster.settings) is None
