"""Rank of the digest benchmark: one training with blocks of steps with and without digests.

The digest is that of a steered run, taken at the same place and gathered over the same group; the training is a plain
Trainer's, so that nothing else of Steerway is measured.
"""

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from benchmarks.harness.training import arguments, fresh_model, random_blocks, shipped_config
from control_plane.storage.layout import RunFiles
from ray_jobs.digest import hashing
from ray_jobs.digest import state as digests
from ray_jobs.digest.stream import DigestStream
from ray_jobs.hf.live import live
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.session import RankSession

WARM_UP_STEPS = 20
SAMPLES = 4096

Block = dict[str, Any]


class Counting(io.RawIOBase):
    """File object that hashes and counts the bytes written to it, and discards them."""

    def __init__(self) -> None:
        super().__init__()
        self.digest, self.size_bytes = hashlib.sha256(), 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Hash and count the data."""
        size_bytes = memoryview(data).nbytes
        self.digest.update(data)
        self.size_bytes += size_bytes
        return size_bytes


@dataclass
class DigestBlocks(TrainerCallback):
    """Callback that runs the blocks, and ends the training with the last one."""

    spec: dict[str, Any]
    collectives: Collectives
    blocks: list[Block] = field(default_factory=list)
    # Set when the trainer exists: take a digest after a step, and return the number of bytes.
    ours: Callable[[int], int] = lambda step: 0
    plain: Callable[[int], int] = lambda step: 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the order of the blocks: every arm once per round, rotated by one from round to round."""
        arms = [("off", 0), *((arm, every) for every in self.spec["every"] for arm in ("ours", "plain"))]
        arms = [(arm, every) for arm, every in arms if every <= self.spec["steps"]]
        self._order = [arms[(at + turn) % len(arms)] for turn in range(self.spec["rounds"]) for at in range(len(arms))]
        self._made = -WARM_UP_STEPS

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collective. Count a step of the block, take its digest, and start the next block."""
        self._made += 1
        if self._made <= 0:
            if self._made == 0:
                self._begin()
            return
        block = self.blocks[-1]
        if block["every"] and self._made % block["every"] == 0:
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            block["digest_bytes"].append(getattr(self, block["arm"])(state.global_step))
            block["digest_ms"].append(1e3 * (time.perf_counter() - began_s))
            block["digest_cpu_ms"].append(1e3 * (time.thread_time() - began_cpu_s))
        if self._made == self.spec["steps"]:
            block["step_ms"] = 1e3 * (time.perf_counter() - self._began_s) / self._made
            block["step_cpu_ms"] = 1e3 * (time.process_time() - self._began_cpu_s) / self._made
            self._made = 0
            if len(self.blocks) == len(self._order):
                control.should_training_stop = True
            else:
                self._begin()

    def _begin(self) -> None:
        arm, every = self._order[len(self.blocks)]
        self.blocks.append({"arm": arm, "every": every, "digest_ms": [], "digest_cpu_ms": [], "digest_bytes": []})
        self.collectives.barrier()
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()


def train(rank: int, spec: dict[str, Any]) -> list[Block]:
    """Train and return this rank's measurements by block. `spec`: folder, rounds, steps (of a block), every."""
    config, collectives = shipped_config(), Collectives()
    files = RunFiles(Path(spec["folder"]) / "digested")
    blocks = DigestBlocks(spec, collectives)
    steps = WARM_UP_STEPS + spec["rounds"] * spec["steps"] * (2 * len(spec["every"]) + 1)
    trainer = Trainer(
        model=fresh_model(config),
        args=arguments(config, files.root / "trainer", steps),
        train_dataset=random_blocks(config, SAMPLES),
        callbacks=[blocks],
    )
    streams: list[DigestStream] = []
    blocks.ours, blocks.plain = _ours(trainer, collectives, files, streams), _plain(trainer)
    trainer.train()
    for stream in streams:
        stream.close()
    return blocks.blocks


def _ours(
    trainer: Trainer, collectives: Collectives, files: RunFiles, streams: list[DigestStream]
) -> Callable[[int], int]:
    hashed = hashing.tensor_digest
    size_bytes = 0

    def counted(*tensors: torch.Tensor) -> str:
        nonlocal size_bytes
        size_bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return hashed(*tensors)

    def digest(step: int) -> int:
        nonlocal size_bytes
        if not streams:  # the engine exists from here on
            training = live(trainer)
            session = RankSession(collectives, None, read_knobs=training.knobs.readings)
            streams.append(DigestStream(training, session, files, every_steps=1))
        size_bytes = 0
        streams[0].after_boundary(step)
        return size_bytes

    digests.tensor_digest = counted
    return digest


def _plain(trainer: Trainer) -> Callable[[int], int]:
    def digest(step: int) -> int:
        file: Any = Counting()
        engine: Any = trainer.deepspeed
        torch.save({"model": engine.module.state_dict(), "optimizer": engine.optimizer.state_dict()}, file)
        file.digest.hexdigest()
        return file.size_bytes

    return digest
