"""Rank of the GPU check: runs the stages of a spec, one after the other, and writes an answer for each."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(folder: Path) -> None:
    """Collective. Run the stages in `folder/spec.json`."""
    import logging

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    spec = json.loads((folder / "spec.json").read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = _join(spec["rehearse"])
    from benchmarks.gpu.stages import STAGES
    from benchmarks.gpu.steered import Setting

    setting = Setting(rank=rank, world_size=world_size, rehearse=spec["rehearse"], folder=folder)
    _write(folder / f"ready.{rank}.json", {"backend": backend})
    for name in spec["stages"]:
        began_s = time.perf_counter()
        try:
            answer = STAGES[name](setting)
        except Exception as error:
            traceback.print_exc()
            answer = {"checks": {"no exception": False}, "reason": f"{type(error).__name__}: {error}"[:500]}
        _write(folder / f"{name}.{rank}.json", answer | {"seconds": round(time.perf_counter() - began_s, 2)})
        if answer.get("reason") and world_size > 1:
            # The other ranks may wait for this one in a collective: all begin the next stage in new processes.
            sys.exit(1)


def _join(rehearse: bool) -> str:
    import torch
    import torch.distributed as dist

    from ray_jobs.process.cpu_setup import prepare_cpu_ranks

    backend = "gloo" if rehearse else "nccl"
    if not rehearse:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        import transformers.training_args

        torch.set_num_threads(1)
        # Transformers asks for a GPU before it takes `bf16`; DeepSpeed's CPU ranks train in it as well.
        transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    dist.init_process_group(backend)
    prepare_cpu_ranks()
    return backend


def _write(path: Path, answer: dict[str, Any]) -> None:
    """Write an answer atomically: the launcher polls for these files."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(answer))
    new.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
