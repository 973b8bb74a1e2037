"""The nodes of a cluster: their names, what each offers, whose process is whose, and how they are shown."""

import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import psutil
import pytest

from cluster.environment import MARK, NODE_MARK, cluster_environment, node_environment
from cluster.join import permit
from cluster.local import add_node, main, up
from cluster.nodes import (
    HEAD,
    NodeView,
    cpus_of_head,
    cpus_of_node,
    next_number,
    node_members,
    node_temp_dir,
    ray_head,
    ray_node,
    recorded_nodes,
    table,
)
from cluster.processes import ProcessMark, end_members
from cluster.record import ClusterRecord, make_home, read_record, write_record
from control_plane.api import head_variables
from control_plane.config import Settings
from control_plane.core.model.errors import Invalid, NotFound
from tests.cluster.test_local import record

DEAD = ProcessMark(pid=os.getpid(), created_s=1.0)
SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"


def with_nodes(where: Settings, *names: str) -> ClusterRecord:
    return record(where, processes=dict.fromkeys(names, DEAD), cluster=f"test-nodes-{os.getpid()}")


def started(of: ClusterRecord, node: str) -> "subprocess.Popen[str]":
    environment = dict(os.environ) | {MARK: of.cluster, NODE_MARK: node}
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def two_nodes(where: Settings) -> Iterator[tuple[ClusterRecord, "subprocess.Popen[str]", "subprocess.Popen[str]"]]:
    """A cluster whose nodes are one sleeping process each."""
    bare = with_nodes(where)
    second, third = started(bare, "node-2"), started(bare, "node-3")
    marks = {"ray": DEAD, "node-2": ProcessMark.of(second.pid), "node-3": ProcessMark.of(third.pid)}
    yield bare.model_copy(update={"processes": marks}), second, third
    assert end_members(bare.cluster) == []


@pytest.mark.parametrize("count", [0, -1, 65])
def test_up_with_a_count_that_cannot_be_is_refused_and_starts_nothing(where: Settings, count: int) -> None:
    with pytest.raises(Invalid, match=f"the number of nodes is {count}, but must be from 1 to 64"):
        up(where, count=count)
    assert not where.home.exists()


def test_nodes_that_are_no_number_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", "--nodes", "three"])
    assert ended.value.code == 2
    assert "invalid int value: 'three'" in capsys.readouterr().err


def test_a_count_for_another_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["down", "--nodes", "2"])
    assert ended.value.code == 2
    assert "is an option of `up`" in capsys.readouterr().err


def test_a_node_cannot_join_a_cluster_that_is_not_up(where: Settings) -> None:
    with pytest.raises(NotFound, match="no cluster is up"):
        add_node(where)
    make_home(where)
    write_record(where, with_nodes(where, "ray", "node-2"))
    with pytest.raises(NotFound, match="no cluster is up"):
        add_node(where)
    assert recorded_nodes(read_record(where) or record(where)).keys() == {HEAD, "node-2"}


def test_nodes_are_read_from_the_record_in_the_order_of_their_numbers(where: Settings) -> None:
    found = recorded_nodes(with_nodes(where, "node-10", "console", "ray", "node-2"))
    assert list(found) == ["node-1", "node-2", "node-10"]


def test_no_number_is_used_twice(where: Settings) -> None:
    assert next_number(with_nodes(where, "ray")) == 2
    assert next_number(with_nodes(where, "ray", "node-2", "node-7")) == 8


def test_a_lone_head_carries_ranks_and_one_with_other_nodes_does_not() -> None:
    assert cpus_of_head(1) >= 4
    assert cpus_of_head(2) == 0
    assert cpus_of_node() >= 2


def test_nodes_start_on_the_heads_address_with_folders_of_their_own(where: Settings) -> None:
    made = with_nodes(where, "ray", "node-2")
    folder = node_temp_dir(made, "node-2")
    launch = ray_node(where, "node-2", folder)
    assert folder.startswith(made.temp_dir + "/")
    assert {f"--address={where.ray_address}", f"--temp-dir={folder}", "--node-name=node-2"} <= set(launch.command)
    head = ray_head(where, node_temp_dir(made, HEAD), 3)
    assert {"--head", "--num-cpus=0", f"--temp-dir={made.temp_dir}/n1", "--node-name=node-1"} <= set(head.command)
    assert launch.log_file != head.log_file


def test_a_joining_node_is_permitted_on_the_loopback_and_ray_is_told_so_in_one_place() -> None:
    constants, services = ModuleType("constants"), ModuleType("services")
    with pytest.raises(AttributeError):
        permit(constants, services)
    vars(constants)["ENABLE_RAY_CLUSTER"] = False
    vars(services)["resolve_ip_for_localhost"] = lambda host: "192.0.2.1"
    permit(constants, services)
    assert vars(constants)["ENABLE_RAY_CLUSTER"] is True
    assert vars(services)["resolve_ip_for_localhost"]("127.0.0.1") == "127.0.0.1"


def test_a_process_belongs_to_one_node_of_one_cluster(
    two_nodes: tuple[ClusterRecord, "subprocess.Popen[str]", "subprocess.Popen[str]"],
) -> None:
    made, second, third = two_nodes
    assert [process.pid for process in node_members(made, "node-2")] == [second.pid]
    assert [process.pid for process in node_members(made, "node-3")] == [third.pid]
    elsewhere = made.model_copy(update={"cluster": "another", "processes": {"ray": DEAD, "node-2": DEAD}})
    assert node_members(elsewhere, "node-2") == []
    with pytest.raises(NotFound, match="it has node-1, node-2, node-3"):
        node_members(made, "node-4")


def test_an_orphan_of_a_killed_node_is_still_its_member(where: Settings) -> None:
    bare = with_nodes(where, "ray", "node-2")
    orphan = started(bare, "node-2")
    assert node_members(bare, "node-2") == [psutil.Process(orphan.pid)]
    assert end_members(bare.cluster) == []


def test_the_mark_of_a_node_is_not_inherited_by_another_cluster(where: Settings) -> None:
    inside = node_environment(cluster_environment(where, "0123456789abcdef", {}), "node-2")
    assert inside[NODE_MARK] == "node-2"
    assert NODE_MARK not in cluster_environment(where, "fedcba9876543210", inside)


def test_a_killed_raylet_is_known_within_seconds_and_a_silent_one_is_given_ten() -> None:
    period_ms, timeout_ms, failures = (
        int(head_variables.environment()[f"RAY_health_check_{name}"])
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert failures * period_ms <= 3000
    assert failures * timeout_ms >= 10_000


def test_a_table_says_what_a_node_carries_and_that_it_stands_still() -> None:
    views = [
        NodeView("node-1", "0123456789abcdef", "ALIVE", 0.0, False, ("ServeReplica",)),
        NodeView("node-2", "", "unknown", 0.0, False, ()),
        NodeView("node-3", "fedcba9876543210", "ALIVE", 2.0, True, ("RayTrainWorker x2",)),
    ]
    assert table(views).splitlines() == [
        "NODE    ID        STATE           CPUS  ACTORS",
        "node-1  01234567  ALIVE           0     ServeReplica",
        "node-2  -         unknown         0     -",
        "node-3  fedcba98  ALIVE, stopped  2     RayTrainWorker x2",
    ]
