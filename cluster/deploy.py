"""The gateway, its tokens and a supervised console on an existing Ray cluster.

    python -m cluster.deploy --address HOST:PORT [--public-name NAME]... [--delete] [--json]

It runs on a machine of the cluster that shares this installation's home with the others. Idempotent: what is there and
up to date stays as it is. `--delete` removes what it has made from Ray; runs, tokens and keys stay in the home.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.console_actor import end_console, find_console, start_console
from cluster.parts import answers, check_free
from cluster.reach import ExistingRay, reach, split
from cluster.record import cluster_lock, read_record
from control_plane.api.cluster import Finding
from control_plane.api.versions import release
from control_plane.config import Settings, settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import Conflict, Refused, SteerwayError
from control_plane.storage.file_systems import assess, file_system_of
from control_plane.storage.private import replace_file

INTERRUPTED = 130


class DeploymentRecord(BaseModel):
    """Record of a deployment, and of the cluster that it is on: `deployment.json` in the home. It holds no secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    address: str
    head: str
    release: str
    environment: dict[str, str]


class Outcome(BaseModel):
    """Result of a deployment. `changed`: whether anything had to be done; `lacks`: what the cluster should have."""

    gateway: str
    console: str | None
    tokens: str
    changed: bool
    lacks: tuple[Finding, ...] = ()


def record_file(where: Settings) -> Path:
    """Return the path of the deployment's record."""
    return where.home / "deployment.json"


def read_deployment(where: Settings) -> DeploymentRecord | None:
    """Return the record, or None if nothing is deployed from this home, or the record is unreadable."""
    try:
        return DeploymentRecord.model_validate_json(record_file(where).read_bytes())
    except (OSError, ValidationError):
        return None


def deploy(where: Settings, address: str, public_names: Sequence[str] = ()) -> Outcome:
    """Deploy on the Ray cluster at `address`. Raises `SteerwayError` with one sentence, within seconds."""
    from control_plane.gateway.deploy import connect

    ray = reach(address)
    with cluster_lock(where):
        _refuse_beside_up(where)
        _refuse_storage(where, ray)
        if not ray.here.is_head and where.host != ray.head.address:
            raise Refused(
                f"gateway and console would listen on {where.host} of the head, {ray.head.address}, which cannot be "
                f"seen from here: run this on the head, or set STEERWAY_HOST={ray.head.address}"
            )
        there = settings_on(where, ray, connect(address), public_names)
        changed = _bring_up(there, ray)
        lacks = tuple(finding for finding in _checks(there) if finding.level != "ok")
        has_console = find_console() is not None
        return Outcome(
            gateway=there.own_gateway_url,
            console=there.console_url if has_console else None,
            tokens=str(there.tokens_file.parent / "tokens"),
            changed=changed,
            lacks=lacks,
        )


def delete(where: Settings, address: str) -> bool:
    """Remove gateway and console from the cluster. Returns whether anything was there. Idempotent."""
    from control_plane.gateway.deploy import connect, remove

    reach(address)
    with cluster_lock(where):
        _refuse_beside_up(where)
        connect(address)
        was_there = [end_console(), remove()]
        record_file(where).unlink(missing_ok=True)
        return any(was_there)


def settings_on(where: Settings, ray: ExistingRay, dashboard: str, public_names: Sequence[str] = ()) -> Settings:
    """Return the settings for this cluster: Ray's addresses are those that it has. Raises `Refused`."""
    if not dashboard:
        raise Refused(
            f"the Ray cluster at {ray.address} has no dashboard, whose Jobs API starts the runs: install ray[default] "
            "on the head and start it with `ray start --head --include-dashboard=true`"
        )
    at, (host, port) = urlsplit(f"//{dashboard}"), split(ray.address)
    there = {"ray_host": host, "ray_port": port, "dashboard_host": at.hostname, "dashboard_port": at.port}
    names = tuple(dict.fromkeys((*where.public_names, *(name.lower() for name in public_names))))
    return Settings.model_validate(where.model_dump() | there | {"public_names": names, "url": None, "token": None})


def _bring_up(where: Settings, ray: ExistingRay) -> bool:
    """Deploy what is not there or has changed. Returns whether anything had to be done."""
    from control_plane.gateway import deploy as gateway

    wanted = DeploymentRecord(
        address=ray.address, head=ray.head.node_id, release=release("unknown"), environment=where.environment()
    )
    same = read_deployment(where) == wanted
    gateway_is_up = answers(where.own_gateway_health_url)
    if not (same and gateway_is_up):
        if not gateway_is_up and ray.here.is_head:
            check_free(where.host, where.gateway_port, "gateway", "STEERWAY_GATEWAY_PORT")
        gateway.deploy(where)
    console_is_up = answers(where.own_console_health_url) and find_console() is not None
    if not (same and console_is_up):
        end_console()
        if ray.here.is_head:
            check_free(where.host, where.console_port, "console", "STEERWAY_CONSOLE_PORT")
        start_console(where)
    if not same:
        replace_file(record_file(where), wanted.model_dump_json() + "\n")
    return not (same and gateway_is_up and console_is_up)


def _checks(where: Settings) -> Sequence[Finding]:
    from control_plane.actor.cluster_view import RayCluster

    return asyncio.run(RayCluster(where.home, where.signing_key).check()).findings


def _refuse_beside_up(where: Settings) -> None:
    record = read_record(where)
    if record is not None and record.living():
        raise Conflict(
            f"`steer up` has started a cluster from {where.home} (since {record.started_at}): `steer down` first, or "
            "deploy from another STEERWAY_HOME"
        )


def _refuse_storage(where: Settings, ray: ExistingRay) -> None:
    level, reason = assess(file_system_of(where.home), len({node.address for node in ray.nodes}))
    if level == "failed":
        raise Refused(f"runs cannot be stored in {where.home}: {reason}")


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(outcome.model_dump_json(), flush=True)
        return
    print(f"gateway    {outcome.gateway}\nconsole    {outcome.console or 'none'}\ntokens     {outcome.tokens}")
    for finding in outcome.lacks:
        print(one_line(f"{finding.level}: {finding.what}: {finding.why}" + (finding.action and f"; {finding.action}")))
    print("deployed" if outcome.changed else "nothing to do: all of it is up and of this release", flush=True)


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Errors are printed to stderr."""
    parser = argparse.ArgumentParser(prog="cluster.deploy", description="Gateway and console on an existing cluster.")
    parser.add_argument("--address", required=True, help="the head's address, HOST:PORT, as `ray start` prints it")
    parser.add_argument("--public-name", action="append", default=[], help="a host name by which clients reach it")
    parser.add_argument("--delete", action="store_true", help="remove gateway and console from the cluster")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    try:
        if not given.delete:
            _tell(deploy(settings(), given.address, given.public_name), given.json)
            return 0
        was_there = delete(settings(), given.address)
        if given.json:
            print(json.dumps({"removed": was_there}), flush=True)
        else:
            _say("gateway and console are removed; runs, tokens and keys stay" if was_there else "nothing is deployed")
        return 0
    except SteerwayError as error:
        _say(f"steer: {error.reason}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("steer: interrupted; the same command continues")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
