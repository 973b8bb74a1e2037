"""Trainings of the policy gradient on real ranks, as shipped, that are sent feedback on episodes.

`spec`: `root` of the run, `steps`, `commands`, `sources` (False: none), `weight`; and for lives that end early, or go
back: `every_steps` (between checkpoints), `asked` (see `crash_trials.Asker`), `kill` (rank and step).
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import set_seed

from control_plane.core.model.data import SourceSettings
from control_plane.storage.layout import RunFiles
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from ray_jobs.workloads import policy_gradient
from ray_jobs.workloads.episode_feedback import PREFERENCES, SCORES
from ray_jobs.workloads.grid import FIELDS
from tests.ray_jobs.trials.crash_trials import Asker, _known, die
from tests.ray_jobs.trials.skip_trials import _settle, wait_for_offers
from tests.ray_jobs.trials.trials import open_server

SEED, GAMES = 3, 4
SOURCES: dict[str, Any] = {
    "scores": {"format": "jsonl", "live": True, "fields": SCORES},
    "preferences": {"format": "jsonl", "live": True, "fields": PREFERENCES},
}


def features(*entered: int) -> list[int]:
    """Features of an episode that enters these fields."""
    return [entered.count(field) for field in range(FIELDS)]


def write_shard(files: RunFiles, source: str, first: int) -> dict[str, Any]:
    """Put a shard of feedback into a run's folder, and return what a command says of it."""
    numbers = range(first, first + 12)
    if source == "scores":
        records = [{"features": features(each % 25, 7, 8), "score": each % 5 - 2.0} for each in numbers]
    else:
        records = [{"preferred": features(each % 25), "rejected": features(7, 8)} for each in numbers]
    content = b"".join(json.dumps(each).encode() + b"\n" for each in records)
    sha256 = hashlib.sha256(content).hexdigest()
    path = files.data / source / f"{sha256}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"source": source, "sha256": sha256, "records": len(records), "bytes": len(content)}


class Watched(TrainingSession):
    """A session of a training that waits for its control server, and may be killed; the last one is kept."""

    last: "Watched"
    server: Any = None
    spec: dict[str, Any] = {}

    def steps(self) -> Iterator[int]:
        Watched.last, steering, rank = self, self._steering, dist.get_rank()
        if self.server is not None and self.spec.get("commands"):
            wait_for_offers(steering, self.server)
        trainer: Any = SimpleNamespace(_steering=steering)
        asker = Asker(trainer, self.server, self.spec.get("asked", []))
        for made in super().steps():
            if self.spec.get("every_steps"):
                _settle(steering)
            if self.server is not None and self.spec.get("asked"):
                asker.on_step_begin(None, SimpleNamespace(global_step=made), None)
            if self.spec.get("kill") == [rank, made + 1]:
                die()
            yield made


def trained(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One life of a training, with each branch that it is taken to: what became of the policy and of the reward."""
    files = RunFiles(Path(spec["root"]))
    known = _known(files)
    dist.barrier()
    new = [each for each in spec.get("commands", []) if each["uuid"] not in known]
    server = open_server(files, new) if rank == 0 else None
    Watched.server, Watched.spec = server, spec
    settings = {name: SourceSettings.model_validate(each) for name, each in SOURCES.items()}
    arguments = ["--steps", spec["steps"], "--games", GAMES, "--seed", SEED, "--show-every", 2, "--shown", 2]
    arguments += ["--feedback-records", 4, "--feedback-weight", spec.get("weight", 1.0)]
    old, sys.argv = (sys.argv, policy_gradient.TrainingSession), ["policy_gradient", *map(str, arguments)]
    policy_gradient.TrainingSession = Watched  # type: ignore[misc]
    try:
        while True:
            run = context.RunContext(
                files=files,
                connect=lambda: server,  # type: ignore[arg-type, return-value]
                checkpoint_every_steps=spec.get("every_steps", 0),
                digest_every_steps=1,
                sources=settings if spec.get("sources", True) else {},
                seed=SEED,
            )
            context.enter(run)
            set_seed(SEED)  # as a rank does it before the script
            try:
                policy_gradient.main()
                return _seen(Watched.last)
            except LeaveForBranch:
                forget_training()
    finally:
        context.enter(None)
        sys.argv, policy_gradient.TrainingSession = old  # type: ignore[misc]


def _seen(session: Watched) -> dict[str, Any]:
    model: Any = session._model
    policy, reward = getattr(model, "policy", model), getattr(model, "reward", None)
    weights = torch.cat([each.detach().flatten() for each in policy.parameters()])
    return {
        "step": session.global_step,
        "policy": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "reward": reward.rewards.tolist() if reward is not None else None,
    }


def everything(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Several trainings in the same processes."""
    return {name: trained(rank, one) for name, one in spec["trainings"].items()}
