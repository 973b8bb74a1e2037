"""Preemption of nodes: requests a checkpoint before the deadline of a draining node.

Ray marks a node that is about to be preempted as draining. A thread of every rank polls the state of its own node; the
first to see it sends a `save_checkpoint` command like any operator: so all ranks save at the same boundary, and the
journal has the reason. Ray's own `get_preemption_info` is a barrier, and would have to be called by all ranks alike.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from uuid import NAMESPACE_URL, uuid5

from control_plane.api.ports import OperatorPort
from control_plane.core.model.commands import Command, SaveCheckpoint
from control_plane.core.model.errors import Refused

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""Spot instances get a notice of 30 s or more; a poll costs the cluster one small request per rank."""


def watch(node: str, run: str, connect: Callable[[], OperatorPort], draining: Callable[[], Mapping[str, int]]) -> None:
    """Poll in the background, for as long as this process lives. `draining`: deadlines by node, Unix time in ms."""
    arguments = (node, run, connect, draining)
    threading.Thread(target=_look, args=arguments, name="steerway-preemption", daemon=True).start()


def _look(node: str, run: str, connect: Callable[[], OperatorPort], draining: Callable[[], Mapping[str, int]]) -> None:
    handled: set[int] = set()
    while True:
        time.sleep(LOOK_EVERY_S)
        try:
            deadline_ms = draining().get(node)
            if deadline_ms is not None and deadline_ms not in handled:
                asyncio.run(request_checkpoint(connect(), run, node, deadline_ms))
                handled.add(deadline_ms)
        except Refused as refusal:
            handled.add(deadline_ms or 0)
            log.warning("no checkpoint before the preemption of node %s: %s", node[:8], refusal.reason)
        except Exception as error:
            # Retried at the next poll: the training does not depend on it.
            log.warning("cannot find out whether node %s is being drained: %s", node[:8], error)


async def request_checkpoint(handle: OperatorPort, run: str, node: str, deadline_ms: int) -> None:
    """Send the command. Idempotent: all ranks of the node use the same uuid. Raises `SteerwayError`."""
    left_s = max(0.0, deadline_ms / 1000 - time.time())
    when = f"in {left_s:.0f} s" if deadline_ms else "soon"
    command = Command(
        uuid=uuid5(NAMESPACE_URL, f"{run}/{node}/{deadline_ms}"),
        author="steerway",
        intent=SaveCheckpoint(label="before a node is taken away"),
        reason=f"node {node[:8]} is being drained and will be preempted {when}",
    )
    await handle.submit(command)
    log.warning("%s: requested a checkpoint", command.reason)
