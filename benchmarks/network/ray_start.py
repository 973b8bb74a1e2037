"""Ray on the rig's machines, started by `ray start` as an administrator would by hand."""

import subprocess
from collections.abc import Mapping
from typing import Literal

from benchmarks.network.machines import Machine
from control_plane.core.model.errors import SteerwayError

PORT, DASHBOARD_PORT = 6379, 8265
OBJECT_STORE_BYTES = 256 << 20
START_WITHIN_S = 180.0


def ray_start(
    machine: Machine,
    role: Literal["head", "worker"],
    head: Machine | None = None,
    *,
    cpus: float = 1,
    env: Mapping[str, str] | None = None,
    more: tuple[str, ...] = (),
) -> str:
    """Start Ray's head, or a worker of `head`'s cluster; return the cluster's address, `HOST:PORT`.

    Args:
        machine: Where to start it.
        role: `head`, or `worker`, which needs `head`.
        head: The head's machine.
        cpus: CPUs that the node declares; a head that shall carry no rank has 0.
        env: More variables, such as `RAY_AUTH_MODE`; the head's are inherited by GCS and raylet.
        more: More arguments.

    Raises:
        SteerwayError: it did not start, with the end of what it printed.
    """
    leader = machine if role == "head" else head
    if leader is None:
        raise SteerwayError("a worker needs the machine of its cluster's head")
    address = f"{leader.address}:{PORT}"
    where = (
        ("--head", f"--port={PORT}", f"--dashboard-host={machine.address}", f"--dashboard-port={DASHBOARD_PORT}")
        if role == "head"
        else (f"--address={address}",)
    )
    command = ("ray", "start", *where, f"--node-ip-address={machine.address}", f"--num-cpus={cpus:g}")
    sizes = (f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats")
    try:
        done = machine.run(*command, *sizes, *more, env=env, timeout_s=START_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise SteerwayError(f"`ray start` on {machine.name} did not end within {START_WITHIN_S:.0f} s") from None
    if done.returncode:
        raise SteerwayError(f"Ray did not start on {machine.name}:\n{(done.stdout + done.stderr)[-3000:]}")
    return address
