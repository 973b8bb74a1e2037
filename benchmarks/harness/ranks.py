"""Launcher of ranks without Ray: processes with torch.distributed over gloo that run the same function.

    answers = run_ranks("benchmarks.step_cost.boundary_rank:train", 2, spec={...}, folder=folder, timeout_s=300)

The function gets `(rank, spec)` and returns JSON; the results are returned in rank order.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.ports import free_port
from control_plane.core.model.errors import SteerwayError

POLL_S = 0.1
LOG_CHARS_SHOWN = 2000


def run_ranks(function: str, world_size: int, spec: dict[str, Any], folder: Path, timeout_s: float) -> list[Any]:
    """Run `module:function` on every rank. Kills all processes afterwards.

    Raises `SteerwayError`, with the end of a log, if a rank fails, or after `timeout_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({"function": function, "spec": spec}))
    port = free_port()
    ranks = [_start(rank, world_size, port, folder) for rank in range(world_size)]
    try:
        _wait(ranks, folder, timeout_s)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def _start(rank: int, world_size: int, port: int, folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"rank-{rank}.log").open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.harness.ranks", str(folder)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait(ranks: "list[subprocess.Popen[bytes]]", folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(process.poll() is None for process in ranks):
        _refuse_failure(ranks, folder)
        if time.monotonic() > deadline:
            raise SteerwayError(f"the ranks did not end within {timeout_s:g} s")
        time.sleep(POLL_S)
    _refuse_failure(ranks, folder)


def _refuse_failure(ranks: "list[subprocess.Popen[bytes]]", folder: Path) -> None:
    """Raise the error of a failed rank, for which the others would wait."""
    for rank, process in enumerate(ranks):
        if process.poll():
            log = (folder / f"rank-{rank}.log").read_text(errors="replace")
            raise SteerwayError(
                f"rank {rank} ended with exit code {process.returncode}; its log ends:\n{log[-LOG_CHARS_SHOWN:]}"
            )


def main(folder: Path) -> None:
    """Run the function on one rank."""
    from benchmarks.harness.training import prepare_rank

    prepare_rank()
    import torch.distributed as dist

    dist.init_process_group("gloo")
    given = json.loads((folder / "spec.json").read_text())
    module, name = given["function"].split(":")
    rank = dist.get_rank()
    answer = getattr(importlib.import_module(module), name)(rank, given["spec"])
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
