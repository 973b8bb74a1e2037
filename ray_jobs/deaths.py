"""Who died: what Ray Train's controller finds out is told to the run's control server, in a sentence for each rank.

Both callbacks run in Ray Train's controller process, where every second is a second of the recovery. `DeathWatch`
tells, and has the next start wait where it has to. `NoFarewell` ends what is left of a group that lost a rank.
"""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from control_plane.core import crash_loop
from control_plane.core.errors import SteerwayError
from control_plane.core.records import Death
from control_plane.ray_handle import RayHandle
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from ray_jobs import exit_reason
from ray_jobs.back_off import wait_for_the_start

log = logging.getLogger(__name__)

TELL_WITHIN_S = 10.0


class DeathWatch(WorkerGroupCallback):
    """Tells the control server of each group of workers of which some have failed, once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._has_told = False
        self._telling: threading.Thread | None = None
        self._oom_kills: int | None = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Another group. After a failure it is started when the back-off is over; raises `RunIsOver` if it is not."""
        if self._telling is not None:
            self._telling.join(TELL_WITHIN_S)
            wait_for_the_start(RunFiles(Path(self._root)))
        self._has_told, self._oom_kills = False, oom_kills()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Tell the control server, beside the controller's event loop."""
        if not worker_group_status.errors or self._has_told:
            return
        self._has_told, files = True, RunFiles(Path(self._root))
        more = (oom_kills() or 0) > (self._oom_kills or 0)
        errors = sorted(worker_group_status.errors.items())
        deaths = tuple(describe(files, rank, error, more) for rank, error in errors)
        self._telling = threading.Thread(target=_tell, args=(files, deaths), name="steerway-deaths", daemon=True)
        self._telling.start()


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


def describe(files: RunFiles, rank: int, error: Exception, oom_killed: bool = False) -> Death:
    """One rank's death. What the rank wrote down itself comes first; then what Ray knows.

    `oom_killed`: whether the kernel has ended a process for want of memory since the rank's start.
    """
    left, death = exit_reason.read(files, rank), is_death(error)
    if left is not None and left.signature:
        return Death(rank=rank, reason=left.reason, signature=left.signature, step=left.step)
    told = redaction_of(files).text(str(error))
    if _is_out_of_memory(error, told) or (death and oom_killed):
        reason = "it was ended for want of memory (out of memory)"
        return Death(rank=rank, reason=reason, signature=crash_loop.OUT_OF_MEMORY)
    reason, signature = _reason(error, told)
    return Death(rank=rank, reason=left.reason if left else reason, signature="" if left else signature)


def _is_out_of_memory(error: Exception, told: str) -> bool:
    """Whether Ray's memory monitor ended it. Its words for any other death name the kernel's as one of its causes."""
    return isinstance(_cause(error), OutOfMemoryError) or "memory usage threshold" in told


def _reason(error: Exception, told: str) -> tuple[str, str]:
    """A sentence, and what says the same of the same failure."""
    cause = _cause(error)
    if isinstance(cause, ActorUnavailableError):
        return crash_loop.NO_ANSWER, crash_loop.NO_ANSWER
    if is_death(error):
        if "its node has died" in str(cause):
            return crash_loop.NODE_DIED, crash_loop.NODE_DIED
        return "its process was killed or has crashed", crash_loop.KILLED
    # Before it is cut: the half of a secret is still one, and nobody would know it.
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:500]
    return reason, crash_loop.without_noise(reason)


def oom_kills(cgroup: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processes of this process's control group the kernel has ended for want of memory; None: unknown.

    Ranks on other machines have groups of their own, of which nothing is known here.
    """
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # The second version has one tree; in the first one each controller has its own.
        root, name = (mounts / "memory", "memory.oom_control") if controllers else (mounts, "memory.events")
        for folder in (root / path.lstrip("/"), root):  # in a container the path is often the host's
            try:
                counted = dict(each.split() for each in (folder / name).read_text().splitlines())
                return int(counted["oom_kill"])
            except (OSError, ValueError, KeyError):
                continue
    return None


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
