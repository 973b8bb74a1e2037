"""Look at an existing Ray cluster before anything is done with it: whether it answers, with which token, and its nodes.

    python -m cluster.reach HOST:PORT        one JSON object

It runs in a process of its own, with a time limit: Ray's client prints to stderr and waits for up to a minute, where a
sentence after a second is better.
"""

import json
import socket
import subprocess
import sys
from dataclasses import dataclass

import psutil

from control_plane.core.model.errors import Invalid, NotAllowed, SteerwayError, Unavailable
from control_plane.programs import program

CONNECT_WITHIN_S = 3.0
ANSWER_WITHIN_S = 20.0
"""An import of Ray and two calls: a second, on a busy machine several."""

CALL_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class RayNode:
    """A living node of the cluster."""

    node_id: str
    address: str
    name: str
    is_head: bool


@dataclass(frozen=True, slots=True)
class ExistingRay:
    """A Ray cluster that answers. `here`: its node on this machine."""

    address: str
    head: RayNode
    nodes: tuple[RayNode, ...]
    here: RayNode


def reach(address: str) -> ExistingRay:
    """Return the cluster at `HOST:PORT`.

    Raises `Invalid` for a malformed address, `NotAllowed` without its token, `Unavailable` if nothing answers, or if no
    node of it runs on this machine.
    """
    host, port = split(address)
    try:
        socket.create_connection((host, port), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise Unavailable(
            f"no Ray cluster answers at {address} ({error.strerror or error}): give the address that `ray start "
            "--head` has printed, and see that its port is open from here"
        ) from None
    nodes = _ask(address)
    head = next((node for node in nodes if node.is_head), None)
    if head is None:
        raise Unavailable(f"the Ray cluster at {address} has no living head node")
    own = {end.address for ends in psutil.net_if_addrs().values() for end in ends}
    here = [node for node in nodes if node.address in own]
    if not here:
        raise Unavailable(
            f"this machine is no node of the Ray cluster at {address}, which has "
            f"{', '.join(node.address for node in nodes)}: run `steer deploy` on one of them"
        )
    return ExistingRay(address, head, tuple(nodes), next((node for node in here if node.is_head), here[0]))


def split(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises `Invalid`."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or "//" in host:
        raise Invalid(f"{address!r} is not an address of a Ray cluster: use HOST:PORT, such as 10.0.0.1:6379")
    return host.strip("[]"), int(port)


def _ask(address: str) -> list[RayNode]:
    try:
        done = subprocess.run(
            program("cluster.reach", address), capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{address} accepts connections, but is not Ray's GCS, or is stuck") from None
    except (ValueError, IndexError):
        raise Unavailable(f"the Ray cluster at {address} cannot be asked: {_last(done.stderr)}") from None
    match answer:
        case {"error": "token"}:
            raise NotAllowed(
                f"the Ray cluster at {address} requires its token: run with RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH, as on the head"
            )
        case {"error": str(reason)}:
            raise Unavailable(f"the Ray cluster at {address} does not answer: {reason}")
    return [RayNode(**node) for node in answer["nodes"]]


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _nodes(address: str) -> dict[str, object]:
    # The client behind `ray health-check`; no public call does without a driver and the dashboard.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    try:
        infos = GcsClient(address=address).get_all_node_info(timeout=CALL_WITHIN_S)
    except AuthenticationError:
        return {"error": "token"}
    except (RayError, RuntimeError) as error:
        return {"error": _last(str(error))}
    alive = 0  # GcsNodeInfo.ALIVE
    return {
        "nodes": [
            {
                "node_id": node_id.hex(),
                "address": info.node_manager_address,
                "name": info.node_name,
                "is_head": info.is_head_node,
            }
            for node_id, info in infos.items()
            if info.state == alive
        ]
    }


if __name__ == "__main__":
    try:
        print(json.dumps(_nodes(sys.argv[1])), flush=True)
    except SteerwayError as error:
        print(json.dumps({"error": error.reason}), flush=True)
