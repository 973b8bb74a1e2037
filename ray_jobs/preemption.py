"""A node that is about to be taken away: a checkpoint is asked for before the deadline.

Ray marks such a node as draining. A thread of every rank looks whether its own node is; the first that finds out sends
`save_checkpoint` as a command, like anybody else: so all ranks save at the same boundary, and the journal says why.
Ray's own `get_preemption_info` is a barrier, and would have to be called by all ranks alike.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from uuid import NAMESPACE_URL, uuid5

from control_plane.core.commands import Command, SaveCheckpoint
from control_plane.core.errors import Refused
from control_plane.handle import RunHandle

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""Spot instances are given 30 s and more; one look costs the cluster a small request per rank."""


def watch(node: str, run: str, connect: Callable[[], RunHandle], draining: Callable[[], Mapping[str, int]]) -> None:
    """Look in the background, for as long as this process lives. `draining` answers deadlines (Unix time in ms)."""
    arguments = (node, run, connect, draining)
    threading.Thread(target=_look, args=arguments, name="steerway-preemption", daemon=True).start()


def _look(node: str, run: str, connect: Callable[[], RunHandle], draining: Callable[[], Mapping[str, int]]) -> None:
    told: set[int] = set()
    while True:
        time.sleep(LOOK_EVERY_S)
        try:
            deadline_ms = draining().get(node)
            if deadline_ms is not None and deadline_ms not in told:
                asyncio.run(ask_for_a_checkpoint(connect(), run, node, deadline_ms))
                told.add(deadline_ms)
        except Refused as refusal:
            told.add(deadline_ms or 0)
            log.warning("no checkpoint before the node goes: %s", refusal.reason)
        except Exception as error:
            # Whoever cannot look now looks again: the training does not depend on it.
            log.warning("whether node %s is being drained is not known: %s", node[:8], error)


async def ask_for_a_checkpoint(handle: RunHandle, run: str, node: str, deadline_ms: int) -> None:
    """Send the command. All ranks of the node, and repetitions, make the same one. Raises `SteerwayError`."""
    left_s = max(0.0, deadline_ms / 1000 - time.time())
    when = f"in {left_s:.0f} s" if deadline_ms else "soon"
    command = Command(
        uuid=uuid5(NAMESPACE_URL, f"{run}/{node}/{deadline_ms}"),
        author="steerway",
        intent=SaveCheckpoint(label="before a node is taken away"),
        reason=f"node {node[:8]} is being drained and will be taken away {when}",
    )
    await handle.submit(command)
    log.warning("%s: a checkpoint was asked for", command.reason)
