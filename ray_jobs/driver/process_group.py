"""Set-up of the ranks' process group: on the right network interface, and tried again if the ranks do not connect."""

import logging
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig

from ray_jobs.driver.ray_internals import TorchBackend, WorkerGroupStartupFailedError, abandon_group

log = logging.getLogger(__name__)

MOST_TRIES = 6
"""Failed connections in a row after which a run is closed: some 30 s. What is wrong for longer, a person must mend."""

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 15.0


class RanksTorchConfig(TorchConfig):
    """Ray Train's TorchConfig with `RanksBackend`."""

    @property
    def backend_cls(self) -> type["RanksBackend"]:
        """Return the class that Ray Train makes once for all starts of a run."""
        return RanksBackend


class RanksBackend(TorchBackend):
    """Ray Train's set-up of torch.distributed that chooses the interface first, and survives failures to connect.

    Ray Train closes a run if its ranks cannot connect, and leaves the resources of that group reserved. A port that
    another process took meanwhile, a link that flaps, a name server that stumbles: most such failures are over soon.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failures = 0

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group on all ranks. Raises `WorkerGroupStartupFailedError`, after a delay, to try again.

        What is raised after `MOST_TRIES` closes the run.
        """
        try:
            for reason in worker_group.execute(choose_interface_of_node):
                if reason:
                    log.warning("%s", reason)
            super().on_start(worker_group, backend_config)
        except Exception as error:
            abandon_group(worker_group)
            if isinstance(error, RayActorError):
                raise  # a rank has died: Ray Train starts the group again by itself
            self._failures += 1
            wait_or_give_up(self._failures, error)
        self._failures = 0


def wait_or_give_up(failures: int, error: Exception, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait, and raise `WorkerGroupStartupFailedError`; after too many failures in a row raise `error`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:300]
    if failures >= MOST_TRIES:
        log.error("the ranks could not connect to each other, %d times in a row: %s", failures, reason)
        raise error
    delay_s = min(FIRST_DELAY_S * 2 ** (failures - 1), LONGEST_DELAY_S)
    log.warning(
        "the ranks could not connect to each other (try %d of %d): %s; starting them again in %g s",
        failures,
        MOST_TRIES,
        reason,
        delay_s,
    )
    sleep(delay_s)
    raise WorkerGroupStartupFailedError(f"the ranks could not connect to each other: {reason}") from error


def choose_interface_of_node() -> str | None:
    """Choose the interface for gloo and NCCL on one rank; return the reason why not, or None."""
    import ray.util

    from ray_jobs.process.interfaces import choose_interface

    return choose_interface(ray.util.get_node_ip_address())
