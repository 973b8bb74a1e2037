"""Back-off before a restart of failed trainers: waits for the delay that the control server has chosen.

The delay grows for as long as there is no new step (see `core.crash_loop`). The wait ends early when the run is closed:
by `steer stop`, or because of a crash loop. It holds no resources of the cluster: the failed workers are gone.
"""

import asyncio
import logging
import threading

from control_plane.actor.remote import RayHandle
from control_plane.api.messages import Restarting
from control_plane.api.ports import OperatorPort
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.layout import RunFiles

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
ASK_WITHIN_S = 10.0


class StartCancelled(RuntimeError):
    """The run was closed: its trainers are not started again."""


def wait_for_back_off(files: RunFiles) -> None:
    """Block until the trainers may be started. Raises `StartCancelled`.

    Waits in a thread of its own: Ray Train's controller calls its callbacks in its event loop, and a second loop cannot
    run in that thread.
    """
    closed: list[StartCancelled] = []

    def wait() -> None:
        try:
            asyncio.run(wait_for(RayHandle(files, retry_for_s=ASK_WITHIN_S)))
        except StartCancelled as over:
            closed.append(over)
        except SteerwayError as error:
            # Trainers check for a closed run themselves before they begin: only the delay is lost.
            log.warning("restarting without a back-off, the control server did not answer: %s", error.reason)

    waiting = threading.Thread(target=wait, name="steerway-back-off", daemon=True)
    waiting.start()
    waiting.join()
    if closed:
        raise closed[0]


async def wait_for(handle: OperatorPort, look_every_s: float = LOOK_EVERY_S) -> None:
    """Wait until the run's next trainers may be started. Raises `StartCancelled`, `Unavailable`."""
    logged = False
    while True:
        snapshot = await handle.snapshot()
        if snapshot.closed:
            raise StartCancelled(f"run {snapshot.run} has {snapshot.status}: its trainers are not started again")
        restarting = snapshot.restarting
        if restarting is None or restarting.left_s <= 0:
            return
        if not logged:
            _log_delay(restarting)
            logged = True
        await asyncio.sleep(min(restarting.left_s, look_every_s))


def _log_delay(restarting: Restarting) -> None:
    log.log(
        logging.WARNING if restarting.alert else logging.INFO,
        "starting again in %.0f s after %d failures without a new step: %s",
        restarting.left_s,
        restarting.failures,
        restarting.reason,
    )
