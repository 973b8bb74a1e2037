"""Ranks go first: the gateway's own processes run at a lower priority than Ray's other workers.

Where they share a machine, whatever the gateway does is taken from the training's time. The control server keeps the
priority of the ranks: rank 0 waits for its answers, and no more reaches it than the turnstile lets through.
"""

import logging
import os
from pathlib import Path

LOWER_BY = 4
"""Each step of niceness is a quarter of the processor time, when there is too little of it: four make 1 to 2.4.
Ray gives its workers 15 unless it is told otherwise, and 19 is the least there is."""

THREADS = Path("/proc/self/task")

log = logging.getLogger(__name__)


def give_way(lower_by: int = LOWER_BY) -> None:
    """Lower this process, all of its threads: on Linux each has a niceness of its own, which new ones inherit."""
    threads = [int(each.name) for each in THREADS.iterdir()] if THREADS.is_dir() else [0]
    for thread in threads:
        try:
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + lower_by)
        except OSError as error:
            log.debug("thread %d keeps its priority: %s", thread, error.strerror)
