"""Faults on purpose: whom they reach, whom they must not reach, and what is refused. Nodes are sleeping processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from cluster.chaos import heal, kill_node, main, partition, send
from cluster.environment import MARK, NODE_MARK
from cluster.processes import ProcessMark, end_members
from cluster.record import make_home, write_record
from control_plane.config import Settings
from control_plane.core.model.errors import Conflict, NotAllowed, NotFound
from tests.cluster.test_local import record

CLUSTER = f"test-chaos-{os.getpid()}"
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)"
)


class Node:
    """A node that is a parent and its child, both asleep."""

    def __init__(self, name: str) -> None:
        environment = dict(os.environ) | {MARK: CLUSTER, NODE_MARK: name}
        self.root = subprocess.Popen(
            [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.root.stdout is not None
        self.pids = [self.root.pid, int(self.root.stdout.readline())]

    def states(self) -> set[str]:
        """What its processes are: `stopped` or `awake`; a dead one is nothing."""
        return {state for pid in self.pids for state in state_of(pid)}


def comes_to(pid: int, state: set[str]) -> bool:
    """A signal is on its way for a moment."""
    deadline = time.monotonic() + 20
    while state_of(pid) != state and time.monotonic() < deadline:
        time.sleep(0.02)
    return state_of(pid) == state


def state_of(pid: int) -> set[str]:
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return set()
    if status == psutil.STATUS_ZOMBIE:
        return set()
    # Awake is asleep for the kernel, or just on the way there.
    return {"stopped" if status == psutil.STATUS_STOPPED else "awake"}


@pytest.fixture
def nodes(where: Settings) -> Iterator[dict[str, Node]]:
    """Three nodes, recorded as a cluster that is up."""
    found = {name: Node(name) for name in ("node-1", "node-2", "node-3")}
    marks = {name: ProcessMark.of(node.root.pid) for name, node in found.items()}
    marks["ray"] = marks.pop("node-1")
    make_home(where)
    write_record(where, record(where, cluster=CLUSTER, processes=marks))
    yield found
    assert end_members(CLUSTER) == []


def test_a_killed_node_loses_all_its_processes_and_the_others_none(where: Settings, nodes: dict[str, Node]) -> None:
    told = kill_node(where, "node-2")
    assert nodes["node-2"].states() == set()
    assert nodes["node-1"].states() == nodes["node-3"].states() == {"awake"}
    assert "killed node-2: SIGKILL to 2 processes" in told
    assert all(str(pid) in told for pid in nodes["node-2"].pids)


def test_a_dead_node_cannot_be_killed_again(where: Settings, nodes: dict[str, Node]) -> None:
    kill_node(where, "node-2")
    for again in (kill_node, partition, heal):
        with pytest.raises(Conflict, match="node-2 is dead already"):
            again(where, "node-2")


@pytest.mark.parametrize("fault", [kill_node, partition])
def test_the_head_is_spared_unless_it_is_meant(
    where: Settings, nodes: dict[str, Node], fault: Callable[..., str]
) -> None:
    with pytest.raises(Conflict, match=r"node-1 is the head node.*--head.*node-2, node-3"):
        fault(where, "node-1")
    assert nodes["node-1"].states() == {"awake"}


def test_the_head_that_is_meant_is_killed_alone(where: Settings, nodes: dict[str, Node]) -> None:
    assert "clean up with `steer down`" in kill_node(where, "node-1", head=True)
    assert nodes["node-1"].states() == set()
    assert nodes["node-2"].states() == {"awake"}


def test_a_partitioned_node_stands_still_until_it_is_healed(where: Settings, nodes: dict[str, Node]) -> None:
    told = partition(where, "node-3")
    assert nodes["node-3"].states() == {"stopped"}
    assert nodes["node-2"].states() == {"awake"}
    assert "its network is up" in told
    assert "SIGCONT to 2 processes" in heal(where, "node-3")
    assert nodes["node-3"].states() == {"awake"}


def test_a_node_that_is_not_cut_off_cannot_be_healed(where: Settings, nodes: dict[str, Node]) -> None:
    with pytest.raises(Conflict, match="none of its 2 processes is stopped"):
        heal(where, "node-3")


def test_a_partitioned_node_can_be_killed(where: Settings, nodes: dict[str, Node]) -> None:
    partition(where, "node-3")
    kill_node(where, "node-3")
    assert nodes["node-3"].states() == set()


def test_an_unknown_node_is_named_with_those_that_are(where: Settings, nodes: dict[str, Node]) -> None:
    with pytest.raises(NotFound, match="no node 'node-9'; it has node-1, node-2, node-3"):
        kill_node(where, "node-9")


def test_a_signal_reaches_a_process_of_the_cluster(where: Settings, nodes: dict[str, Node]) -> None:
    rank = nodes["node-2"].pids[1]
    assert send(where, rank, "stop") == f"SIGSTOP to process {rank}"
    assert comes_to(rank, {"stopped"})
    send(where, rank, "continue")
    assert comes_to(rank, {"awake"})
    send(where, rank, "kill")
    assert comes_to(rank, set())


def test_a_process_of_somebody_else_is_never_signalled(where: Settings, nodes: dict[str, Node]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(NotAllowed, match=f"process {stranger.pid} does not belong to this cluster"):
            send(where, stranger.pid, "kill")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_that_has_ended_is_not_found(where: Settings, nodes: dict[str, Node]) -> None:
    kill_node(where, "node-2")
    nodes["node-2"].root.wait()
    with pytest.raises(NotFound, match="does not exist"):
        send(where, nodes["node-2"].root.pid, "kill")


def test_without_a_cluster_nothing_is_done(where: Settings) -> None:
    with pytest.raises(NotFound, match="no cluster is up"):
        kill_node(where, "node-2")
    with pytest.raises(NotFound, match="no cluster is up"):
        send(where, os.getpid(), "stop")


def test_the_command_line_prints_one_line_or_one_refusal(
    where: Settings, nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(where.home))
    assert main(["signal", str(nodes["node-2"].pids[1]), "stop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"done": f"SIGSTOP to process {nodes['node-2'].pids[1]}"}
    assert main(["partition", "node-3"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["partition", "node-3", "--heal"]) == 0
    assert main(["kill-node", "node-9"]) == 3
    assert "node-9" in capsys.readouterr().err
