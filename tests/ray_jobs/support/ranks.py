"""Real ranks for tests: processes with torch.distributed over gloo, each running the same function.

    results = run_ranks("tests.ray_jobs.trials.trials:steer_learning_rate", world_size=2, spec={...}, folder=tmp_path)

The function gets `(rank, spec)` and answers JSON; the answers come back in rank order. A rank that fails shows its
log in the error.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.ray_jobs.support.preloaded import RANK_ENVIRONMENT, Forked, interpreter

TIMEOUT_S = 240
END_WITHIN_S = 60
"""How long a killed process may take to be gone."""


def run_ranks(
    function: str, world_size: int, spec: dict[str, Any], folder: Path, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({"function": function, "spec": spec}))
    shared = RANK_ENVIRONMENT | {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    interpreters = [interpreter(rank % 2) for rank in range(world_size)]
    ranks: list[Forked] = []
    try:
        for rank in range(world_size):
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = folder / f"rank-{rank}.out"
            ranks.append(interpreters[rank].start("tests.ray_jobs.support.ranks:main", folder, log, environment))
        statuses = [rank.wait(timeout_s) for rank in ranks]
    finally:
        for each in ranks:
            each.kill()
            each.wait(END_WITHIN_S)
    logs = [(folder / f"rank-{rank}.out").read_text() for rank in range(world_size)]
    assert statuses == [0] * world_size, "\n".join(f"--- rank {r}\n{log[-4000:]}" for r, log in enumerate(logs))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def main(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from ray_jobs.process.cpu_setup import prepare_cpu_ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    prepare_cpu_ranks()
    rank = dist.get_rank()
    given = json.loads((folder / "spec.json").read_text())
    module, name = given["function"].split(":")
    answer = getattr(importlib.import_module(module), name)(rank, given["spec"])
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()
