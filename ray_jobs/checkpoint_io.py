"""Shards out, manifest last. All ranks participate in a save.

DeepSpeed writes each rank's share (never its `latest` file, which can name an incomplete checkpoint); every rank adds
its random state, then makes its own files durable and hashes them; when all have, rank 0 writes the manifest.
A failure on any rank is everyone's: no manifest, and the folder is removed.
"""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from control_plane.core.errors import SteerwayError
from control_plane.core.records import CheckpointCommitted
from control_plane.storage.checkpoints import Manifest, Shard, SigningKey, commit, hash_shard
from control_plane.storage.layout import RunFiles
from ray_jobs.collectives import Collectives

STATE = "state"
"""DeepSpeed's tag: the subfolder that holds its files."""

SHARD_OF_RANK = re.compile(r"zero_pp_rank_(\d+)_|rank-(\d+)-")
FREE_SPACE_FACTOR = 1.2
"""A save is refused unless this many times its estimated size is free."""

BYTES_PER_PARAMETER = 16
"""fp32 weights, their master copy and Adam's two moments."""


def save(trainer: Any, files: RunFiles, collectives: Collectives, about: dict[str, Any]) -> CheckpointCommitted | str:
    """Collective. Save the trainer's state. `about` holds the manifest's generation, step, label, knobs and settled.

    Answers the committed checkpoint, or, on every rank alike, the reason why there is none.
    """
    name = _free_name(files, collectives, f"step-{about['step']:08d}-g{about['generation']}")
    root = files.checkpoints / name
    problem = _guarded(lambda: (root / STATE).mkdir(parents=True, exist_ok=True))
    if not any(problems := collectives.all_gather(problem)):
        problems = collectives.all_gather(_guarded(lambda: _write_shards(trainer, root, collectives.rank)))
    shards: list[Shard] = []
    if not any(problems):
        described = collectives.all_gather(_describe(root, collectives.rank))
        problems = [part if isinstance(part, str) else None for part in described]
        shards = [shard for part in described if not isinstance(part, str) for shard in part]
    committed: CheckpointCommitted | str | None = None
    if collectives.rank == 0:
        committed = _reason(problems) or _commit(root, name, files, trainer, shards, about)
        if isinstance(committed, str):
            shutil.rmtree(root, ignore_errors=True)
    answer: CheckpointCommitted | str = collectives.all_gather(committed)[0]
    return answer


def space_refusal(trainer: Any, files: RunFiles) -> str | None:
    """Why the disk cannot take a checkpoint, or None."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    needed_bytes = int(parameters * BYTES_PER_PARAMETER * FREE_SPACE_FACTOR)
    free_bytes = shutil.disk_usage(files.root).free
    if free_bytes < needed_bytes:
        return f"a checkpoint needs about {needed_bytes:,} bytes, and {free_bytes:,} are free in {files.checkpoints}"
    return None


def _free_name(files: RunFiles, collectives: Collectives, name: str) -> str:
    """Saving twice at one step makes two checkpoints. Rank 0 looks; what it saw is what all use."""
    taken = 0
    while collectives.rank == 0 and (files.checkpoints / _numbered(name, taken)).exists():
        taken += 1
    return _numbered(name, int(collectives.broadcast_json(taken)))


def _numbered(name: str, taken: int) -> str:
    return f"{name}-{taken + 1}" if taken else name


def _guarded(write: Callable[[], None]) -> str | None:
    try:
        write()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _write_shards(trainer: Any, root: Path, rank: int) -> None:
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        engine.save_checkpoint(str(root), tag=STATE, save_latest=False, exclude_frozen_parameters=False)
    elif rank == 0:
        state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        torch.save(state | {"lr_scheduler": trainer.lr_scheduler.state_dict()}, root / STATE / "model.pt")
    torch.save(random_state(), root / STATE / f"rank-{rank}-random.pt")
    if rank == 0:
        trainer.state.save_to_json(str(root / STATE / "trainer_state.json"))


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from, on this rank."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _describe(root: Path, rank: int) -> list[Shard] | str:
    """Hash and sync the files that this rank wrote; files that name no rank are rank 0's."""
    try:
        paths = sorted(path for path in (root / STATE).rglob("*") if path.is_file())
        return [hash_shard(root, path, rank) for path in paths if _writer(path) == rank]
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _writer(path: Path) -> int:
    match = SHARD_OF_RANK.search(path.name)
    return int(match[1] or match[2]) if match else 0


def _commit(
    root: Path, name: str, files: RunFiles, trainer: Any, shards: list[Shard], about: dict[str, Any]
) -> CheckpointCommitted | str:
    import deepspeed
    import transformers

    args = trainer.args
    samples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    manifest = Manifest(
        checkpoint=name,
        run=files.run,
        world_size=args.world_size,
        shards=tuple(shards),
        samples_consumed=samples_per_step * int(about["step"]),
        versions={
            "torch": str(torch.__version__),
            "deepspeed": str(deepspeed.__version__),
            "transformers": str(transformers.__version__),
        },
        **about,
    )
    try:
        digest = commit(root, manifest, SigningKey.of_installation(files.root.parent.parent / "checkpoint-key"))
    except (OSError, SteerwayError) as error:
        return f"the manifest could not be written: {error}"
    return CheckpointCommitted(
        checkpoint=name,
        step=manifest.step,
        generation=manifest.generation,
        path=str(root.relative_to(files.root)),
        label=manifest.label,
        size_bytes=manifest.size_bytes,
        manifest_sha256=digest,
    )


def _reason(problems: list[str | None]) -> str | None:
    told = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    return "; ".join(told) or None
