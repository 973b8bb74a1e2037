"""Ranks of the failure detection benchmark, with watchdogs and loader workers, forked for each trial.

deaths_ranks.py FOLDER    each line on stdin is a trial's name; its ranks write their pids to FOLDER/NAME, and train
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from control_plane.storage.private import write_file

RANKS, WORKERS, SAMPLES = 2, 2, 1 << 20


def main(folder: Path) -> None:
    """Fork two ranks for each line, until there are no more. Their monitors, which are measured, end them."""
    import torch

    import ray_jobs.monitor.watchdog  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        name, port = line.split()
        (folder / name).mkdir()
        for rank in range(RANKS):
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                with contextlib.suppress(Exception):  # a peer's end ends a collective with an exception
                    _train(folder / name, rank, int(port))
                os._exit(1)


def _train(folder: Path, rank: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    from ray_jobs.monitor.verdict import Timeouts
    from ray_jobs.monitor.watchdog import Watchdog, open_monitor_port
    from ray_jobs.process.collectives import Collectives

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    dist.init_process_group("gloo")
    collectives = Collectives()
    watchdog = Watchdog(Timeouts(), folder / f"{rank}.died.json", open_monitor_port(collectives, "here"))
    watchdog.start()
    data = torch.utils.data.TensorDataset(torch.zeros(SAMPLES, 8))
    batches: Any = iter(torch.utils.data.DataLoader(data, batch_size=8, num_workers=WORKERS))
    weights = torch.ones(1024)
    for number, _ in enumerate(batches):
        watchdog.beat("training")
        dist.all_reduce(weights)
        if number == 5:
            pids = {"rank": os.getpid(), "workers": [worker.pid for worker in batches._workers]}
            _note(folder / f"{rank}.json", pids)


def _note(path: Path, pids: dict[str, Any]) -> None:
    """Write the pids atomically."""
    write_file(path.with_suffix(".new"), json.dumps(pids))
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
