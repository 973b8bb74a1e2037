"""Faults on purpose, on this machine's cluster: nodes and ranks that die, fall silent and come back.

    python -m cluster.chaos kill-node NAME [--head] | partition NAME [--heal] [--head] | signal PID kill|stop|continue

Each prints one line: what was done, and to which processes.

What dies here dies at once, but its kernel lives: the connections of a killed process are closed, and its peers notice
in milliseconds. A machine that is cut off says nothing at all. Its stand-in is `partition`: every process of the node
is stopped (SIGSTOP), so that no answer ever comes. To cut the network itself would need firewall rights, and nodes
that do not share the loopback.
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
    """Kill every process of a node, as if the machine had lost its power; the sentence that says so.

    Raises `NotFound` for an unknown node or no cluster, `Conflict` if it is dead already or is the head and `head`
    was not said, `SteerwayError` if a process survives.
    """
    with cluster_lock(where):
        record = require_up(where)
        _living_members(record, name, head)
        # Stopped before they are killed: none is left to speak of another's death.
        members = stop_processes(lambda: node_members(record, name))
        left = kill_processes(lambda: [*members, *node_members(record, name)])
        if left:
            raise SteerwayError(f"these processes of {name} cannot be killed: {_pids(left)}")
        after = f"; with it went {WHAT_THE_HEAD_CARRIES}: `steer down` cleans up" if name == HEAD else ""
        return f"killed {name}: SIGKILL to {_named(members)}{after}"


def partition(where: Settings, name: str, head: bool = False) -> str:
    """Stop every process of a node, so that it answers nobody; the sentence that says so. Raises as `kill_node`."""
    with cluster_lock(where):
        record = require_up(where)
        _living_members(record, name, head)
        members = stop_processes(lambda: node_members(record, name))
        return (
            f"{name} answers nobody: SIGSTOP to {_named(members)}; its network is not cut, its processes are stopped; "
            f"`steer chaos partition {name} --heal` lets them go on"
        )


def heal(where: Settings, name: str, head: bool = False) -> str:
    """Let the processes of a node go on; the sentence that says so. Raises as `kill_node`."""
    with cluster_lock(where):
        record = require_up(where)
        members = _living_members(record, name, head=True)
        stopped = [process for process in members if _is_stopped(process)]
        if not stopped:
            raise Conflict(f"{name} is not cut off: none of its {len(members)} processes is stopped")
        continue_processes(stopped)
        return (
            f"{name} answers again: SIGCONT to {_named(stopped)}; if Ray has declared it dead meanwhile, it ends "
            "itself now, and `steer chaos add-node` replaces it"
        )


def send(where: Settings, pid: int, word: str) -> str:
    """Send a signal to one process of this cluster; the sentence that says so.

    Raises `NotFound` if no cluster is up or no such process is left, `NotAllowed` if it is not the cluster's.
    """
    record = require_up(where)
    try:
        process = psutil.Process(pid)
        members = record.members()
        if process not in members:
            raise NotAllowed(f"process {pid} is not of this cluster; nothing was sent to it")
        process.send_signal(SIGNALS[word])
    except psutil.NoSuchProcess:
        raise NotFound(f"there is no process {pid} any more") from None
    return f"{SIGNALS[word].name} to process {pid}"


def _living_members(record: ClusterRecord, name: str, head: bool) -> list[psutil.Process]:
    members = node_members(record, name)
    if name == HEAD and not head:
        others = [other for other in recorded_nodes(record) if other != HEAD]
        instead = f"name another ({', '.join(others)})" if others else "bring up more with `steer up --nodes 3`"
        raise Conflict(
            f"{name} is the head: with it go {WHAT_THE_HEAD_CARRIES}. Say --head if you mean it, or {instead}"
        )
    if not members:
        raise Conflict(f"{name} is dead already; `steer chaos add-node` joins another")
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
    """The command line. Errors are a sentence on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="cluster.chaos", description="Faults on purpose.")
    parser.set_defaults(json=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("kill-node", "partition"):
        of_node = verbs.add_parser(verb)
        of_node.add_argument("node")
        of_node.add_argument("--head", action="store_true", help="the head is meant")
        if verb == "partition":
            of_node.add_argument("--heal", action="store_true", help="undo it")
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
