"""Chaos testing of this machine's cluster: kills, stops and resumes nodes and processes.

    python -m cluster.chaos kill-node NAME [--head] | partition NAME [--heal] [--head] | signal PID kill|stop|continue

Each prints one line: what was done, and to which processes.

A killed process dies at once, but its kernel lives: its connections are closed, and its peers notice in milliseconds. A
machine without network sends nothing at all. `partition` simulates that: it stops every process of the node (SIGSTOP),
so that no answer ever comes. To cut the network itself would need firewall rights, and nodes that do not share the
loopback.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence

import psutil

from cluster.local import answered, require_up
from cluster.nodes import HEAD, node_members, recorded_nodes
from cluster.processes import continue_processes, kill_processes, stop_processes
from cluster.record import ClusterRecord, cluster_lock
from control_plane.config import Settings, settings
from control_plane.core.model.errors import Conflict, NotAllowed, NotFound, SteerwayError

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}
WHAT_THE_HEAD_CARRIES = "Ray's GCS, the gateway, the control servers and the drivers"


def kill_node(where: Settings, name: str, head: bool = False) -> str:
    """Kill every process of a node, as if the machine had lost its power; return a message.

    Raises `NotFound` for an unknown node or no cluster, `Conflict` if it is dead already, or is the head and `head` is
    False, `SteerwayError` if a process survives.
    """
    with cluster_lock(where):
        record = require_up(where)
        _living_members(record, name, head)
        # Stopped before they are killed, so that none can report another's death.
        members = stop_processes(lambda: node_members(record, name))
        left = kill_processes(lambda: [*members, *node_members(record, name)])
        if left:
            raise SteerwayError(f"these processes of {name} cannot be killed: {_pids(left)}")
        after = f"; that ended {WHAT_THE_HEAD_CARRIES} too: clean up with `steer down`" if name == HEAD else ""
        return f"killed {name}: SIGKILL to {_named(members)}{after}"


def partition(where: Settings, name: str, head: bool = False) -> str:
    """Stop every process of a node, to simulate a network partition; return a message. Raises as `kill_node`."""
    with cluster_lock(where):
        record = require_up(where)
        _living_members(record, name, head)
        members = stop_processes(lambda: node_members(record, name))
        return (
            f"{name} does not respond any more: SIGSTOP to {_named(members)}; its network is up, its processes are "
            f"stopped; resume them with `steer chaos partition {name} --heal`"
        )


def heal(where: Settings, name: str, head: bool = False) -> str:
    """Resume the processes of a node that `partition` has stopped; return a message. Raises as `kill_node`."""
    with cluster_lock(where):
        record = require_up(where)
        members = _living_members(record, name, head=True)
        stopped = [process for process in members if _is_stopped(process)]
        if not stopped:
            raise Conflict(f"{name} is not partitioned: none of its {len(members)} processes is stopped")
        continue_processes(stopped)
        return (
            f"{name} responds again: SIGCONT to {_named(stopped)}; if Ray has declared it dead meanwhile, it shuts "
            "down now: replace it with `steer chaos add-node`"
        )


def send(where: Settings, pid: int, word: str) -> str:
    """Send a signal to one process of this cluster; return a message.

    Raises `NotFound` if no cluster is up or no such process is left, `NotAllowed` if it is not the cluster's.
    """
    record = require_up(where)
    try:
        process = psutil.Process(pid)
        members = record.members()
        if process not in members:
            raise NotAllowed(f"process {pid} does not belong to this cluster; no signal was sent")
        process.send_signal(SIGNALS[word])
    except psutil.NoSuchProcess:
        raise NotFound(f"process {pid} does not exist") from None
    return f"{SIGNALS[word].name} to process {pid}"


def _living_members(record: ClusterRecord, name: str, head: bool) -> list[psutil.Process]:
    members = node_members(record, name)
    if name == HEAD and not head:
        others = [other for other in recorded_nodes(record) if other != HEAD]
        instead = f"choose another ({', '.join(others)})" if others else "start more with `steer up --nodes 3`"
        raise Conflict(
            f"{name} is the head node, which runs {WHAT_THE_HEAD_CARRIES}. Add --head to do it anyway, or {instead}"
        )
    if not members:
        raise Conflict(f"{name} is dead already; add another node with `steer chaos add-node`")
    return members


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _named(processes: Sequence[psutil.Process]) -> str:
    return f"{len(processes)} processes ({_pids([process.pid for process in processes])})"


def _pids(pids: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(pids)))


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Errors are printed to stderr."""
    parser = argparse.ArgumentParser(prog="cluster.chaos", description="Chaos testing of this machine's cluster.")
    parser.set_defaults(json=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("kill-node", "partition"):
        of_node = verbs.add_parser(verb)
        of_node.add_argument("node")
        of_node.add_argument("--head", action="store_true", help="allow it for the head node")
        if verb == "partition":
            of_node.add_argument("--heal", action="store_true", help="resume the stopped processes")
    of_process = verbs.add_parser("signal")
    of_process.add_argument("pid", type=int)
    of_process.add_argument("word", choices=SIGNALS)
    of_process.add_argument("--json", action="store_true", help="print one JSON line")
    given = parser.parse_args(arguments)
    return answered(lambda: _do(settings(), given))


def _do(where: Settings, given: argparse.Namespace) -> int:
    if given.verb == "signal":
        done = send(where, given.pid, given.word)
    elif given.verb == "kill-node":
        done = kill_node(where, given.node, given.head)
    else:
        done = (heal if given.heal else partition)(where, given.node, given.head)
    print(json.dumps({"done": done}) if given.json else done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
