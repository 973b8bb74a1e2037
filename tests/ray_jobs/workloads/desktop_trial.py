"""Trainings of the desktop's model on real ranks, whose base data gets a shard of the missing behaviours.

`spec`: `root` of the run, `base` (glob), `steps`, `commands`.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch.distributed as dist

from control_plane.core.model.data import SourceSettings
from control_plane.storage.layout import RunFiles
from ray_jobs.process import context
from ray_jobs.workloads import desktop_screen as screen
from ray_jobs.workloads.desktop import Training
from tests.ray_jobs.trials.trials import open_server

SEED, SAMPLES, SOURCE = 3, 8, "fresh"


def sources(base: str) -> dict[str, Any]:
    """Sources of a training, as a config has them."""
    common = {"format": "arrays", "fields": screen.FIELDS}
    return {"base": common | {"path": base}, SOURCE: common | {"live": True}}


def write_fresh(files: RunFiles) -> dict[str, Any]:
    """Put a shard of the missing behaviours into a run's folder, and return what a command says of it."""
    sequences = [screen.sequence(behaviour, seed) for behaviour in screen.MISSING for seed in range(8)]
    content = screen.shard(sequences)
    sha256 = hashlib.sha256(content).hexdigest()
    path = files.data / SOURCE / f"{sha256}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    records = sum(len(one.events) for one in sequences)
    return {"source": SOURCE, "sha256": sha256, "records": records, "bytes": len(content)}


def trained(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One training to its end, and how often its own samples came from each source by then."""
    files = RunFiles(Path(spec["root"]))
    dist.barrier()
    server = open_server(files, spec["commands"]) if rank == 0 else None
    settings = {name: SourceSettings.model_validate(each) for name, each in sources(spec["base"]).items()}
    run = context.RunContext(files=files, connect=lambda: server, sources=settings, seed=SEED)  # type: ignore[arg-type, return-value]
    context.enter(run)
    try:
        training = Training(spec["steps"], seed=SEED, samples=SAMPLES, evaluate_every=spec.get("evaluate_every", 0))
        training.train()
    finally:
        context.enter(None)
    status = training.data.status(spec["steps"] + 1)
    return {
        "weights": training.model.leave.weight.detach().flatten().tolist(),
        "shift": training.shift.value,
        "fresh_share": status[SOURCE]["share"],
        "fresh_records": status[SOURCE]["records"],
    }


def everything(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Several trainings in the same processes."""
    return {name: trained(rank, one) for name, one in spec["trainings"].items()}
