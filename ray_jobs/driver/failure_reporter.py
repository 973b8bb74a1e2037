"""Failure reporting from Ray Train's controller to the run's control server, with a sentence for each failed rank.

Both callbacks run in Ray Train's controller process, where every second is a second of the recovery. `FailureReporter`
reports failures and applies the back-off before a restart. `FastShutdown` kills the remaining ranks of a failed group.
"""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from control_plane.actor.remote import RayHandle
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import Death
from control_plane.core.rules import crash_loop
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from ray_jobs.driver.back_off import wait_for_back_off
from ray_jobs.driver.ray_internals import WorkerGroupCallback
from ray_jobs.monitor import exit_reason

log = logging.getLogger(__name__)

TELL_WITHIN_S = 10.0


class FailureReporter(WorkerGroupCallback):
    """Ray Train callback that reports each failed worker group to the control server, once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._has_told = False
        self._telling: threading.Thread | None = None
        self._oom_kills: int | None = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Wait for the back-off if the previous group failed. Raises `StartCancelled` if the run was closed."""
        if self._telling is not None:
            self._telling.join(TELL_WITHIN_S)
            wait_for_back_off(RunFiles(Path(self._root)))
        self._has_told, self._oom_kills = False, oom_kills()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Report the errors of a group, in a thread beside the controller's event loop."""
        if not worker_group_status.errors or self._has_told:
            return
        self._has_told, files = True, RunFiles(Path(self._root))
        more = (oom_kills() or 0) > (self._oom_kills or 0)
        errors = sorted(worker_group_status.errors.items())
        deaths = tuple(describe(files, rank, error, more) for rank, error in errors)
        self._telling = threading.Thread(target=_tell, args=(files, deaths), name="steerway-deaths", daemon=True)
        self._telling.start()


class FastShutdown(WorkerGroupCallback):
    """Ray Train callback that kills the remaining ranks at once when one has died. Must run before Ray Train's own.

    Ray Train would ask them to shut down their process group, and then to end: a stopped rank answers neither, and
    Ray Train waits for it, six seconds in all. Their state is in the checkpoint, or lost with the rank that died.
    """

    def __init__(self) -> None:
        self._died = False

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Record whether a rank has died. A rank that raised is not killed: it may still be writing its reason."""
        self._died = any(is_death(error) for error in worker_group_status.errors.values())

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Kill the ranks' processes if one has died."""
        if not self._died:
            return
        for worker in worker_group.get_workers():
            ray.kill(worker.actor)


def is_death(error: Exception) -> bool:
    """Return whether Ray reports the rank's process as dead or unreachable."""
    return isinstance(_cause(error), RayActorError) or "ActorDiedError" in str(error)


def _cause(error: Exception) -> BaseException:
    return getattr(error, "health_check_failure", None) or error.__cause__ or error


def describe(files: RunFiles, rank: int, error: Exception, oom_killed: bool = False) -> Death:
    """Return the record of one rank's failure: the exit reason that the rank itself wrote, or what Ray reports.

    `oom_killed`: whether the kernel's OOM killer has killed a process since the rank's start.
    """
    written, death = exit_reason.read(files, rank), is_death(error)
    if written is not None and written.signature:
        return Death(rank=rank, reason=written.reason, signature=written.signature, step=written.step)
    message = redaction_of(files).text(str(error))
    if _is_out_of_memory(error, message) or (death and oom_killed):
        reason = "its process was killed because the machine ran out of memory (OOM)"
        return Death(rank=rank, reason=reason, signature=crash_loop.OUT_OF_MEMORY)
    reason, signature = _reason(error, message)
    return Death(rank=rank, reason=written.reason if written else reason, signature="" if written else signature)


def _is_out_of_memory(error: Exception, message: str) -> bool:
    """Return whether Ray's memory monitor killed it. Ray's other messages name OOM only as a possible cause."""
    return isinstance(_cause(error), OutOfMemoryError) or "memory usage threshold" in message


def _reason(error: Exception, message: str) -> tuple[str, str]:
    """Return a sentence, and a signature that is equal for equal failures."""
    cause = _cause(error)
    if isinstance(cause, ActorUnavailableError):
        return crash_loop.NO_ANSWER, crash_loop.NO_ANSWER
    if is_death(error):
        if "its node has died" in str(cause):
            return crash_loop.NODE_DIED, crash_loop.NODE_DIED
        return "its process was killed or has crashed", crash_loop.KILLED
    # Redacted before it is cut: half of a secret would not be recognized any more.
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:500]
    return reason, crash_loop.without_noise(reason)


def oom_kills(cgroup: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes of this process's cgroup the kernel's OOM killer has killed; None if unknown.

    Ranks on other machines have cgroups of their own, which are not visible here.
    """
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # cgroup v2 has one tree; in v1 each controller has its own.
        root, name = (mounts / "memory", "memory.oom_control") if controllers else (mounts, "memory.events")
        for folder in (root / path.lstrip("/"), root):  # in a container the path is often the host's
            try:
                counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(counts["oom_kill"])
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
        await handle.fail_generation(snapshot.generation, placed, loss)

    try:
        asyncio.run(lose())
    except SteerwayError as error:
        log.warning("the failure of %d ranks was not reported to the control server: %s", len(deaths), error.reason)
