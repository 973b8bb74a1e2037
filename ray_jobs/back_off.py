"""The back-off before trainers that failed are started again: longer and longer, as long as there is no new step.

How long it is, is the control server's to say (see `core.crash_loop`). It ends early when the run is closed: by
`steer stop`, or because it is given up. Nothing of the cluster is held meanwhile: the workers that failed are gone.
"""

import asyncio
import logging
import threading

from control_plane.core.errors import SteerwayError
from control_plane.handle import Restarting, RunHandle
from control_plane.ray_handle import RayHandle
from control_plane.storage.layout import RunFiles

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
ASK_WITHIN_S = 10.0


class RunIsOver(RuntimeError):
    """The run was closed, so that its trainers are not started again."""


def wait_for_the_start(files: RunFiles) -> None:
    """Block until the trainers may be started. Raises `RunIsOver`.

    Beside the event loop of whoever calls: Ray Train's controller calls its callbacks in its own.
    """
    problem: list[RunIsOver] = []

    def wait() -> None:
        try:
            asyncio.run(wait_for(RayHandle(files, retry_for_s=ASK_WITHIN_S)))
        except RunIsOver as over:
            problem.append(over)
        except SteerwayError as error:
            # The trainers ask it, too, before they begin: what is lost is the wait.
            log.warning("the control server was not asked how long to wait: %s", error.reason)

    waiting = threading.Thread(target=wait, name="steerway-back-off", daemon=True)
    waiting.start()
    waiting.join()
    if problem:
        raise problem[0]


async def wait_for(handle: RunHandle, look_every_s: float = LOOK_EVERY_S) -> None:
    """Until the run's next trainers may be started. Raises `RunIsOver`, `Unavailable`."""
    told = False
    while True:
        snapshot = await handle.snapshot()
        if snapshot.closed:
            raise RunIsOver(f"run {snapshot.run} has {snapshot.status}: its trainers are not started again")
        restarting = snapshot.restarting
        if restarting is None or restarting.left_s <= 0:
            return
        if not told:
            _tell(restarting)
            told = True
        await asyncio.sleep(min(restarting.left_s, look_every_s))


def _tell(restarting: Restarting) -> None:
    log.log(
        logging.WARNING if restarting.alert else logging.INFO,
        "starting again in %.0f s after %d failures without a new step: %s",
        restarting.left_s,
        restarting.failures,
        restarting.reason,
    )
