"""Process priority (nice): the gateway runs at a lower one than Ray's other workers, so that ranks come first.

On a shared machine the gateway competes with the training for processor time. The control server keeps the priority of
the ranks: rank 0 waits for its answers, and admission control limits its load.
"""

import logging
import os
from pathlib import Path

LOWER_BY = 4
"""Each nice level is a factor of 1.25 in processor time under contention: four levels make 1 to 2.4.
Ray starts its workers at nice 15 by default, and 19 is the maximum."""

THREADS = Path("/proc/self/task")

log = logging.getLogger(__name__)


def lower_priority(lower_by: int = LOWER_BY) -> None:
    """Lower the priority of all threads of this process: on Linux each has its own, which new threads inherit."""
    threads = [int(thread.name) for thread in THREADS.iterdir()] if THREADS.is_dir() else [0]
    for thread in threads:
        try:
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + lower_by)
        except OSError as error:
            log.debug("thread %d keeps its priority: %s", thread, error.strerror)
