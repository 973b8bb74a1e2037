"""One machine's cluster: up, down, status.

    python -m cluster.local up [--json] | down | status [--json]

`up` starts Ray's head node, the gateway on it and the console beside it, each in a session of its own, and returns
when all three answer; whatever goes wrong on the way, what was started is taken down again. `down` ends every process
of this cluster, those of its jobs included, and nothing else. Other Ray clusters of the machine are left alone.
"""

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from cluster import parts
from cluster.environment import cluster_environment, is_loopback, ray_environment, ray_token_file
from cluster.processes import ProcessMark, end_members
from cluster.record import ClusterRecord, cluster_lock, make_home, read_record, utc_now, write_private, write_record
from control_plane.config import Settings, settings
from control_plane.core.errors import Conflict, Invalid, SteerwayError

TEMP_PREFIX = "steerway-"
MAX_TEMP_DIR_CHARS = 40
"""A Unix socket's path holds 107 bytes, and Ray adds up to 66 of its own to this folder."""

INTERRUPTED = 130

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A closed terminal or a `kill` must not leave half a cluster behind, no more than Ctrl-C."""


def up(where: Settings, say: Callable[[str], None] = lambda line: None) -> ClusterRecord:
    """Start the cluster and wait until it answers.

    Raises `Conflict` if it is up already, `SteerwayError` (with the end of a log) if a part does not start.
    """
    with cluster_lock(where):
        _refuse_if_up(where)
        if where.host in ("0.0.0.0", "::"):
            raise Invalid(f"STEERWAY_HOST={where.host}: Ray wants the one address by which others reach this machine")
        parts.check_ports(where)
        say("starting Ray, the gateway and the console ...")
        record = _new_record(where)
        write_record(where, record)
        try:
            return _start_parts(where, record)
        except BaseException:
            # Also for Ctrl-C: half a cluster is worse than none.
            end_cluster(where, read_record(where) or record)
            raise


def down(where: Settings) -> ClusterRecord | None:
    """End the cluster. Answers what was ended, or None if no cluster was up. May be repeated.

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
        raise SteerwayError(f"these processes of the cluster cannot be ended: {', '.join(map(str, left))}")
    if Path(record.temp_dir).name.startswith(TEMP_PREFIX):
        shutil.rmtree(record.temp_dir, ignore_errors=True)
    ray_token_file(where).unlink(missing_ok=True)
    where.cluster_file.unlink(missing_ok=True)


def _refuse_if_up(where: Settings) -> None:
    record = read_record(where)
    if record is None:
        return
    if record.living():
        raise Conflict(
            f"a cluster is already up (since {record.started_at}, console {record.console_url}); use it, or "
            "`steer down` first"
        )
    # Its main processes are dead, so nobody is served; what may be left of it are orphans and files.
    end_cluster(where, record)


def _new_record(where: Settings) -> ClusterRecord:
    make_home(where)
    write_private(ray_token_file(where), secrets.token_hex(32))
    return ClusterRecord(
        cluster=secrets.token_hex(8),
        started_at=utc_now(),
        ready=False,
        temp_dir=_make_temp_dir(),
        gateway_url=where.gateway_url,
        console_url=where.console_url,
        dashboard_url=where.dashboard_url,
        ray_address=where.ray_address,
        ports=parts.named_ports(where),
        ray_environment=ray_environment(where),
    )


def _make_temp_dir() -> str:
    """A private folder (mode 0700) whose path is short enough for Ray's sockets."""
    made = tempfile.mkdtemp(prefix=TEMP_PREFIX)
    if len(made) <= MAX_TEMP_DIR_CHARS:
        return made
    Path(made).rmdir()
    return tempfile.mkdtemp(prefix=TEMP_PREFIX, dir="/tmp")


def _start_parts(where: Settings, record: ClusterRecord) -> ClusterRecord:
    from control_plane.gateway.auth import create_tokens

    create_tokens(where)
    environment = cluster_environment(where, record.cluster)
    record = _start_ray(where, record, environment)
    console = parts.console(where)
    console_process = parts.start(console, environment)
    record = _with_process(where, record, "console", console_process.pid)

    gateway = parts.gateway(where)
    deployment = parts.start(gateway, environment)
    parts.wait_until(
        lambda: deployment.poll() == 0 and parts.answers(f"{where.gateway_url}/api/v1/health"),
        deployment,
        gateway,
        parts.GATEWAY_START_S,
    )
    health = f"{where.console_url}/_stcore/health"
    parts.wait_until(lambda: parts.answers(health), console_process, console, parts.CONSOLE_START_S)
    record = record.model_copy(update={"ready": True})
    write_record(where, record)
    return record


def _start_ray(where: Settings, record: ClusterRecord, environment: dict[str, str]) -> ClusterRecord:
    for left in reversed(range(parts.RAY_STARTS)):
        ray = parts.ray_head(where, record.temp_dir)
        process = parts.start(ray, environment)
        record = _with_process(where, record, "ray", process.pid)
        try:
            parts.wait_until(lambda: parts.ray_answers(where), process, ray, parts.RAY_START_S)
            break
        except parts.PartDied:
            if not left:
                raise
            end_members(record.cluster, record.processes.values(), record.temp_dir)
    return record


def _with_process(where: Settings, record: ClusterRecord, name: str, pid: int) -> ClusterRecord:
    record = record.model_copy(update={"processes": record.processes | {name: ProcessMark.of(pid)}})
    write_record(where, record)
    return record


def describe(where: Settings, record: ClusterRecord) -> str:
    """Where a person finds the cluster."""
    exposed = "" if is_loopback(where.host) else f"\nwarning: {where.host} can be reached from other machines"
    return (
        f"console    {record.console_url}\n"
        f"gateway    {record.gateway_url}\n"
        f"dashboard  {record.dashboard_url}  (Ray asks for the token in {ray_token_file(where)})\n"
        f"tokens     {where.token_file('operator').parent}{exposed}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _up(where: Settings, as_json: bool) -> int:
    record = up(where, _say)
    print(record.model_dump_json() if as_json else describe(where, record), flush=True)
    return 0


def _down(where: Settings, _: bool) -> int:
    record = down(where)
    _say("no cluster is up" if record is None else f"the cluster of {record.started_at} is down")
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
        print(f"up since   {record.started_at}\n{describe(where, record)}")
    if missing or not record.ready:
        _say(f"incomplete: {', '.join(missing) or 'it is still starting'}; `steer down` cleans up")
    return 0


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    # Whoever presses Ctrl-C twice must not interrupt the taking down.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """The command line. Errors are a sentence on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="cluster.local", description="One machine's cluster.")
    parser.add_argument("verb", choices=["up", "down", "status"])
    parser.add_argument("--json", action="store_true", help="print the cluster's record as one JSON line")
    given = parser.parse_args(arguments)
    for number in ENDING_SIGNALS:
        signal.signal(number, _interrupt)
    verbs = {"up": _up, "down": _down, "status": _status}
    try:
        return verbs[given.verb](settings(), given.json)
    except SteerwayError as error:
        _say(f"steer: {error.reason}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("steer: interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
