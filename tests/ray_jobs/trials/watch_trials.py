"""What watched ranks do in tests: rounds of a barrier each, and something strange in one of them."""

import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUND_S = 0.02


def main(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from ray_jobs.monitor.verdict import Timeouts
    from ray_jobs.monitor.watchdog import Watchdog, open_monitor_port
    from ray_jobs.process.collectives import Collectives

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    collectives, rank = Collectives(), dist.get_rank()
    given = json.loads((folder / "spec.json").read_text())

    def watch() -> Watchdog:
        dog = Watchdog(
            Timeouts(**given["bounds"]), folder / f"words-{rank}.json", open_monitor_port(collectives, "here")
        )
        dog.start()
        return dog

    dog = watch()
    workers = _loader() if rank in given["loaders"] else []
    (folder / f"pids-{rank}.json").write_text(json.dumps({"monitor": dog.monitor_pid, "workers": workers}))
    acts: dict[str, Callable[[float], Any]] = {
        "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
        "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
        "hold the lock": lambda s: ctypes.PyDLL(None).usleep(int(s * 1e6)),
        "hold the lock for ever": lambda _: re.match(r"(a+)+$", "a" * 64 + "b"),
        "callback": slow_callback,
        "lose the monitor": lambda _: os.kill(dog.monitor_pid or 0, signal.SIGKILL),
        "another barrier": lambda _: dist.barrier(),
        "save slowly": lambda s: (dog.beat("ending"), time.sleep(s)),
        "leave": lambda _: None,
    }
    for number in range(given["rounds"]):
        if number == given.get("anew_at"):
            dog.stop()
            dog = watch()
        dog.beat("training")
        time.sleep(ROUND_S)
        for act in given["acts"]:
            if (act["rank"], act["round"]) == (rank, number):
                (folder / f"act-{rank}").write_text(str(time.time()))
                acts[act["do"]](act.get("s", 0.0))
        if not _has_left(given, rank, number):
            collectives.barrier()
    dog.stop()
    (folder / f"over-{rank}").touch()
    os._exit(0)


def _has_left(given: dict[str, Any], rank: int, number: int) -> bool:
    """At the end nobody waits for the other."""
    return number == given["rounds"] - 1 and given.get("ends_apart", False)


def slow_callback(for_s: float) -> None:
    """The user's own."""
    time.sleep(for_s)


def _loader() -> list[int]:
    import torch

    # They would notice by themselves after 5 s that their parent has gone.
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 10_000
    data = torch.utils.data.TensorDataset(torch.zeros(64, 2))
    loader = torch.utils.data.DataLoader(data, batch_size=1, num_workers=2, persistent_workers=True)
    global _kept
    _kept = iter(loader)
    next(_kept)
    return [worker.pid for worker in _kept._workers]


_kept: Any = None
