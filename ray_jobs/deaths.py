"""Who died: what Ray Train's controller finds out is told to the run's control server, in a sentence for each rank.

Both callbacks run in Ray Train's controller process, and neither waits: every second there is a second of the recovery.
`DeathWatch` tells. `NoFarewell` ends what is left of a group that lost a rank.
"""

import asyncio
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from control_plane.core.errors import SteerwayError
from control_plane.core.records import Death
from control_plane.core.redaction import Redaction
from control_plane.ray_handle import RayHandle
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles

log = logging.getLogger(__name__)

LAST_WORDS_AGE_S = 60.0
"""Older last words are an earlier generation's."""

TELL_WITHIN_S = 10.0


class DeathWatch(UserCallback):
    """Called by Ray Train when one or more workers of a group have failed."""

    def __init__(self, root: str) -> None:
        self._root = root

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell the control server, beside the controller's event loop."""
        files = RunFiles(Path(self._root))
        deaths = tuple(describe(files, rank, error) for rank, error in sorted(worker_exceptions.items()))
        threading.Thread(target=_tell, args=(files, deaths), name="steerway-deaths", daemon=True).start()


class NoFarewell(WorkerGroupCallback):
    """Where a rank has died, the others are ended at once. To be called before Ray Train's own callbacks.

    Ray Train would ask them to take leave of each other, and then to end: a rank that is stopped answers neither, and
    is waited for, six seconds in all. What they hold is in the checkpoint, or lost with the one that died.
    """

    def __init__(self) -> None:
        self._died = False

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Note whether a rank has died. One that raised has said why, and may still have something to tell."""
        self._died = any(is_death(error) for error in worker_group_status.errors.values())

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Kill the processes."""
        if not self._died:
            return
        for worker in worker_group.get_workers():
            ray.kill(worker.actor)


def is_death(error: Exception) -> bool:
    """Whether Ray knows the rank's process to be gone or out of reach."""
    return isinstance(_cause(error), RayActorError) or "ActorDiedError" in str(error)


def _cause(error: Exception) -> BaseException:
    return getattr(error, "health_check_failure", None) or error.__cause__ or error


def describe(files: RunFiles, rank: int, error: Exception) -> Death:
    """One rank's death. What the rank wrote down itself comes first; then what Ray knows."""
    return Death(rank=rank, reason=_last_words(files, rank) or _reason(error, redaction_of(files)))


def _last_words(files: RunFiles, rank: int) -> str | None:
    try:
        told = json.loads(files.last_words(rank).read_text())
        return str(told["reason"]) if time.time() - float(told["time_s"]) < LAST_WORDS_AGE_S else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _reason(error: Exception, redaction: Redaction) -> str:
    cause = _cause(error)
    if isinstance(cause, ActorUnavailableError):
        return "it does not answer"
    if is_death(error):
        node_died = "its node has died" in str(cause)
        return "its node died" if node_died else "its process was killed or has crashed"
    # Before it is cut: the half of a secret is still one, and nobody would know it.
    lines = [line.strip() for line in redaction.text(str(error)).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]


def _tell(files: RunFiles, deaths: tuple[Death, ...]) -> None:
    loss = uuid4()

    async def lose() -> None:
        handle = RayHandle(files, retry_for_s=TELL_WITHIN_S)
        snapshot = await handle.snapshot()
        nodes = {place.rank: place.node for place in snapshot.ranks}
        placed = tuple(death.model_copy(update={"node": nodes.get(death.rank or 0, "")}) for death in deaths)
        await handle.lose_generation(snapshot.generation, placed, loss)

    try:
        asyncio.run(lose())
    except SteerwayError as error:
        log.warning("the control server was not told of %d deaths: %s", len(deaths), error.reason)
