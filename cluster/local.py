"""Cluster of one machine: up, down, status.

    python -m cluster.local up [--nodes N] [--json] | down | status [--json] | nodes [--json] | add-node

`up` starts Ray's head node, the gateway on it and the console beside it, then the other Ray nodes, each in a session
of its own, and returns when all answer; after any error it ends what it has started. `down` ends every process of this
cluster, including those of its jobs, and nothing else. Other Ray clusters of the machine are not touched.
"""

import argparse
import dataclasses
import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from cluster import keeper, nodes, parts
from cluster.environment import (
    cluster_environment,
    node_environment,
    ray_environment,
    ray_token_file,
)
from cluster.processes import ProcessMark, end_members, end_processes
from cluster.record import ClusterRecord, cluster_lock, make_home, read_record, utc_now, write_record
from control_plane.addresses import is_loopback
from control_plane.config import Settings, settings
from control_plane.console_login import create_link
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import Conflict, Invalid, NotFound, SteerwayError
from control_plane.storage.private import replace_file

TEMP_PREFIX = "steerway-"
MAX_TEMP_DIR_CHARS = 36
"""A Unix socket's path holds 107 bytes; Ray adds up to 66 of its own to this folder, and a further node's name 4."""

INTERRUPTED = 130

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals after which a half-started cluster is ended: Ctrl-C, `kill` and a closed terminal."""


def _silent(line: str) -> None:
    """Discard a message, for callers without output."""


def up(where: Settings, say: Callable[[str], None] = _silent, count: int = 1) -> ClusterRecord:
    """Start a cluster of `count` Ray nodes and wait until all of it answers.

    Raises `Invalid` for an invalid count, `Conflict` if it is up already, `SteerwayError` (with the end of a log) if a
    part does not start.
    """
    if not 1 <= count <= nodes.MAX_NODES:
        raise Invalid(f"the number of nodes is {count}, but must be from 1 to {nodes.MAX_NODES}")
    with cluster_lock(where):
        _refuse_if_up(where)
        parts.check_ports(where)
        say(f"starting Ray{f' on {count} nodes' if count > 1 else ''}, the gateway and the console ...")
        record = _new_record(where)
        write_record(where, record)
        try:
            return _start_all(where, record, count, say)
        except BaseException:
            # Also for Ctrl-C: half a cluster is worse than none.
            end_cluster(where, read_record(where) or record)
            raise


def down(where: Settings) -> ClusterRecord | None:
    """End the cluster and return its record, or None if no cluster was up. Idempotent.

    Raises `SteerwayError` if a process cannot be ended.
    """
    with cluster_lock(where):
        record = read_record(where)
        if record is not None:
            end_cluster(where, record)
        return record


def end_cluster(where: Settings, record: ClusterRecord) -> None:
    """End every process of this cluster and remove its temporary files and its record."""
    left = end_members(record.cluster, record.processes.values(), record.temp_dir)
    if left:
        raise SteerwayError(f"these processes of the cluster cannot be killed: {', '.join(map(str, left))}")
    if Path(record.temp_dir).name.startswith(TEMP_PREFIX):
        shutil.rmtree(record.temp_dir, ignore_errors=True)
    ray_token_file(where).unlink(missing_ok=True)
    keeper.parts_file(where).unlink(missing_ok=True)
    where.cluster_file.unlink(missing_ok=True)


def _refuse_if_up(where: Settings) -> None:
    record = read_record(where)
    if record is None:
        return
    if record.living():
        raise Conflict(
            f"a cluster is already up (since {record.started_at}, console {record.console_url}); use it, or run "
            "`steer down` first"
        )
    # Its main processes are dead, so it serves nobody; there may be orphaned processes and files.
    end_cluster(where, record)


def _new_record(where: Settings) -> ClusterRecord:
    make_home(where)
    replace_file(ray_token_file(where), secrets.token_hex(32))
    return ClusterRecord(
        cluster=secrets.token_hex(8),
        started_at=utc_now(),
        ready=False,
        temp_dir=_make_temp_dir(),
        gateway_url=where.own_gateway_url,
        console_url=where.console_url,
        dashboard_url=where.dashboard_url,
        ray_address=where.ray_address,
        ports=parts.named_ports(where),
        ray_environment=ray_environment(where),
    )


def _make_temp_dir() -> str:
    """Make a private folder (mode 0700) whose path is short enough for Ray's sockets."""
    made = tempfile.mkdtemp(prefix=TEMP_PREFIX)
    if len(made) <= MAX_TEMP_DIR_CHARS:
        return made
    Path(made).rmdir()
    return tempfile.mkdtemp(prefix=TEMP_PREFIX, dir="/tmp")


def _start_all(where: Settings, record: ClusterRecord, count: int, say: Callable[[str], None]) -> ClusterRecord:
    try:
        return _start_parts(where, record, count)
    except parts.PartDied as died:
        if died.detail.get("part") != nodes.HEAD_LAUNCH:
            raise
        # On a busy machine the head's smaller servers fail after 30 s, and the head with them, seconds after it has
        # answered. Everything else depends on it: start over.
        say("Ray's head node has died; starting everything again ...")
        started = read_record(where) or record
        end_members(started.cluster, started.processes.values(), started.temp_dir)
        return _start_parts(where, record, count)


def _start_parts(where: Settings, record: ClusterRecord, count: int) -> ClusterRecord:
    from control_plane.gateway.tokens import create_tokens

    create_tokens(where)
    environment = cluster_environment(where, record.cluster)
    head = nodes.ray_head(where, nodes.node_temp_dir(record, nodes.HEAD), count)
    record, ray = _start_node(where, record, nodes.HEAD_PROCESS, head, environment)
    # The parts wait for Ray for minutes; if the head has died meanwhile, that is reported at once, with its own log.
    beneath = [(ray, head)]
    console = parts.console(where)
    console_process = parts.start(console, environment)
    record = _with_process(where, record, "console", console_process.pid)

    gateway = parts.gateway(where)
    deployment = parts.start(gateway, environment)
    parts.wait_until(
        lambda: deployment.poll() == 0 and parts.answers(where.own_gateway_health_url),
        deployment,
        gateway,
        parts.GATEWAY_START_S,
        beneath,
    )
    health = where.own_console_health_url
    parts.wait_until(lambda: parts.answers(health), console_process, console, parts.CONSOLE_START_S)
    # One after the other: three raylets that start at once on two cores exceed Ray's timeout for each.
    for number in range(2, count + 1):
        record = _join(where, record, nodes.node_name(number), environment, beneath)
    record = record.model_copy(update={"ready": True})
    write_record(where, record)
    return record


def _join(
    where: Settings,
    record: ClusterRecord,
    name: str,
    environment: dict[str, str],
    beneath: Sequence[parts.Part] = (),
) -> ClusterRecord:
    launch = nodes.ray_node(where, name, nodes.node_temp_dir(record, name))
    return _start_node(where, record, name, launch, environment, beneath)[0]


def _start_node(
    where: Settings,
    record: ClusterRecord,
    name: str,
    launch: parts.Launch,
    environment: dict[str, str],
    beneath: Sequence[parts.Part] = (),
) -> tuple[ClusterRecord, "subprocess.Popen[bytes]"]:
    """Start a Ray node and wait until Ray reports it as alive. Its raylet may have to be started twice."""
    node = nodes.HEAD if name == nodes.HEAD_PROCESS else name
    for left in reversed(range(parts.RAY_STARTS)):
        process = parts.start(launch, node_environment(environment, node))
        record = _with_process(where, record, name, process.pid)
        try:
            parts.wait_until(lambda: node in nodes.living_nodes(where), process, launch, parts.RAY_START_S, beneath)
            break
        except parts.PartDied:
            if not left or process.poll() is None:
                raise
            end_processes(lambda: nodes.node_members(record, node))  # noqa: B023
    return record, process


def add_node(where: Settings) -> str:
    """Add a node to the running cluster and return its name. If it does not start, the cluster stays as it was.

    Raises `NotFound` if no cluster is up, `Conflict` if it has the largest number of nodes, `SteerwayError` (with the
    end of a log) if the node does not start.
    """
    with cluster_lock(where):
        record = require_up(where)
        living = [name for name, mark in nodes.recorded_nodes(record).items() if mark.process() is not None]
        name = nodes.node_name(nodes.next_number(record))
        if len(living) >= nodes.MAX_NODES:
            raise Conflict(f"this cluster has {len(living)} nodes, which is the limit for one machine")
        try:
            _join(where, record, name, cluster_environment(where, record.cluster))
        except BaseException:
            broken = read_record(where) or record
            if name in broken.processes:
                end_processes(lambda: nodes.node_members(broken, name))
            raise
        return name


def require_up(where: Settings) -> ClusterRecord:
    """Return the record of the running cluster. Raises `NotFound` if there is none."""
    record = read_record(where)
    if record is None or nodes.HEAD_PROCESS not in record.living():
        raise NotFound(f"no cluster is up on {where.home}: start one with `steer up --nodes 3`")
    return record


def _with_process(where: Settings, record: ClusterRecord, name: str, pid: int) -> ClusterRecord:
    record = record.model_copy(update={"processes": record.processes | {name: ProcessMark.of(pid)}})
    write_record(where, record)
    return record


def describe(where: Settings, record: ClusterRecord, console: str | None = None) -> str:
    """Format the addresses of the cluster. `console`: a link that logs in to it."""
    exposed = "" if is_loopback(where.host) else f"\nwarning: {where.host} can be reached from other machines"
    return (
        f"console    {console or record.console_url}\n"
        f"gateway    {record.gateway_url}\n"
        f"dashboard  {record.dashboard_url}  (requires the token in {ray_token_file(where)})\n"
        f"tokens     {where.token_file('operator').parent}{exposed}"
    )


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def _up(where: Settings, as_json: bool, count: int) -> int:
    record = up(where, _say, count)
    if as_json:
        print(record.model_dump_json(), flush=True)
    else:
        print(describe(where, record, create_link(where)), flush=True)
        print("(the console's link works once, for one browser; `steer console` prints another)", flush=True)
    return 0


def _down(where: Settings, _: bool) -> int:
    record = down(where)
    _say("no cluster is up" if record is None else f"the cluster of {record.started_at} is down")
    return 0


def _nodes(where: Settings, as_json: bool) -> int:
    views = nodes.describe_nodes(where, require_up(where))
    if as_json:
        print(json.dumps([dataclasses.asdict(view) for view in views]), flush=True)
        return 0
    print(nodes.table(views), flush=True)
    if seen := keeper.read_parts(where):
        print(f"\n{keeper.table(seen)}", flush=True)
    return 0


def _add_node(where: Settings, as_json: bool) -> int:
    name = add_node(where)
    process = require_up(where).processes[name]
    result = {"node": name, "pid": process.pid}
    print(json.dumps(result) if as_json else f"{name} has joined: `ray start` is process {process.pid}", flush=True)
    return 0


def _status(where: Settings, as_json: bool) -> int:
    record = read_record(where)
    living = record.living() if record else []
    if record is None or not living:
        _say("no cluster is up")
        return 3
    missing = sorted({"ray", "console"} - set(living))
    if as_json:
        print(record.model_dump_json())
    else:
        named = nodes.recorded_nodes(record)
        names = ", ".join(name if mark.process() else f"{name} (dead)" for name, mark in named.items())
        print(f"up since   {record.started_at}\n{describe(where, record)}\nnodes      {names}")
    if missing or not record.ready:
        problem = f"not running: {', '.join(missing)}" if missing else "the cluster is still starting"
        _say(f"{problem}; clean up with `steer down`")
    return 0


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C must not interrupt the clean-up.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Errors are printed to stderr."""
    parser = argparse.ArgumentParser(prog="cluster.local", description="Cluster of one machine.")
    parser.add_argument("verb", choices=["up", *VERBS])
    parser.add_argument("--nodes", type=int, metavar="N", help=f"Ray nodes for `up`, 1 to {nodes.MAX_NODES}")
    parser.add_argument("--json", action="store_true", help="print the cluster's record as one JSON line")
    given = parser.parse_args(arguments)
    if given.nodes is not None and given.verb != "up":
        parser.error(f"--nodes is an option of `up`, not of `{given.verb}`")
    for number in ENDING_SIGNALS:
        signal.signal(number, _interrupt)
    count = 1 if given.nodes is None else given.nodes
    return answered(lambda: _up(settings(), given.json, count) if given.verb == "up" else _do(given.verb, given.json))


def _do(verb: str, as_json: bool) -> int:
    return VERBS[verb](settings(), as_json)


def answered(do: Callable[[], int]) -> int:
    """Call `do` and return its result; print a `SteerwayError` to stderr and return its exit code."""
    try:
        return do()
    except SteerwayError as error:
        _say(f"steer: {error.reason}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("steer: interrupted")
        return INTERRUPTED


VERBS = {"down": _down, "status": _status, "nodes": _nodes, "add-node": _add_node}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
