"""Rank of the checkpoint benchmark: a training that saves between steps, in two ways in turns.

    overlapped  `ray_jobs.checkpoint.save.begin_save`, as runs do it: the copy is made beside the next forward and
                backward pass, the write is in the background
    at_once     the same, with the copy made at the boundary
    stock       `engine.save_checkpoint` of the same engine with the same state to the same disk

The time that training waits is that of the call and, if the copy overlaps, what the next update waits for it.

Before each save the disk is idle: the save before has ended, its files are removed and everything is synced.
"""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.harness.training import forget_trainer
from control_plane.storage.checkpoint.store import SigningKey, discard
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint.capture import STATE
from ray_jobs.checkpoint.save import begin_save, busy_anywhere
from ray_jobs.checkpoint.universal import universal_checkpoint_info
from ray_jobs.checkpoint.writer import CheckpointWriter, Finished
from ray_jobs.hf.live import live
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.live_training import LiveTraining

LAYERS = 8
BYTES_PER_PARAMETER = 16
BLOCK_BYTES = 8 << 20
DRAIN_S = 300.0
ENDLESS_STEPS = 10**6
ROWS = 64
"""Samples a rank and step: forward and backward pass take about as much longer than a copy as those of a real model."""

MEMORY_BYTES = 256 << 20
ORDER = ("overlapped", "at_once", "stock", "stock", "at_once", "overlapped")
"""Arms of one round, so that a drift of the machine affects both alike."""

DEEPSPEED = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 2, "overlap_comm": False},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
    "steps_per_print": 10**9,
}


class Wide(torch.nn.Module):
    """Model of square layers with about `state_bytes` of training state, over all ranks together."""

    def __init__(self, state_bytes: int) -> None:
        super().__init__()
        self.width = width = int((state_bytes / BYTES_PER_PARAMETER / LAYERS) ** 0.5)
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(LAYERS)))

    def forward(self, seed: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return a loss."""
        return {"loss": self.layers(seed[:, :1].expand(-1, self.width)).square().mean()}


@dataclass
class SaveSchedule(TrainerCallback):
    """Callback that resumes the generator `steps` between steps; the training ends with it."""

    steps: Iterator[None] = field(default_factory=lambda: iter(()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collective. Resume the generator."""
        if next(self.steps, "over") == "over":
            control.should_training_stop = True


@dataclass
class Saves:
    """Saves of one size, and their times on this rank."""

    trainer: Trainer
    files: RunFiles
    collectives: Collectives
    writer: CheckpointWriter
    rounds: int
    quiet_steps: int
    _training: LiveTraining | None = None
    seen: dict[str, Any] = field(default_factory=lambda: {name: [] for name in (*ORDER, "copy_s", "quiet", "writing")})

    def plan(self) -> Iterator[None]:
        """Collective. Save in turns after one step; then make steps without and with a write in the background."""
        self.seen["memory_bytes_per_s"] = _memory_bytes_per_s()
        self.seen["first"], self.seen["write"], self.seen["size_bytes"] = self._ours()
        for arm in ORDER * self.rounds:
            if arm == "overlapped":
                self._idle_disk()
                began_s = time.perf_counter()
                self._begin(overlaps=True)
                waited_s = time.perf_counter() - began_s
                yield
                seconds = self._end().seconds
                self.seen[arm].append(waited_s + seconds.get("waited", 0.0))
                self.seen["copy_s"].append(seconds.get("copy", 0.0))
            else:
                self.seen[arm].append(self._ours()[0] if arm == "at_once" else self._stock())
        self.seen["raw"] = self._raw_write_s()
        for name in ("quiet", "writing"):
            if name == "writing" and self.quiet_steps:
                self._begin(overlaps=True)
            while len(self.seen[name]) < self.quiet_steps or busy_anywhere(self.collectives, self.writer):
                began_s = time.perf_counter()
                yield
                self.seen[name].append(time.perf_counter() - began_s)
                if name == "writing" and not busy_anywhere(self.collectives, self.writer):
                    break
        self._end()

    def _begin(self, overlaps: bool = False) -> str:
        about = {"generation": 1, "step": self.trainer.state.global_step, "samples_consumed": 0}
        if self._training is None:
            self._training = live(self.trainer)  # the engine exists from here on
            updating = self._training.partitions.torch_optimizer
            updating.register_step_pre_hook(lambda *_: self.writer.wait_for_copy())
        return begin_save(self._training, self.files, self.collectives, self.writer, about, overlaps=overlaps)

    def _ours(self) -> tuple[float, dict[str, float], int]:
        """Return the stall of the step, the phases of the background write, and the bytes of this rank."""
        self._idle_disk()
        began_s = time.perf_counter()
        self._begin()
        waited_s = time.perf_counter() - began_s
        finished = self._end()
        return waited_s, finished.seconds, finished.size_bytes

    def _end(self) -> Finished | Any:
        if not self.writer.drain(DRAIN_S):
            raise RuntimeError(f"the background write did not end within {DRAIN_S:g} s")
        finished = self.writer.finished()
        if any(ended.reason for ended in finished):
            raise RuntimeError(f"a save failed: {finished}")
        self.collectives.barrier()
        if self.collectives.rank == 0:
            for ended in finished:
                discard(self.files.checkpoints, ended.name)
        return finished[-1] if finished else None

    def _stock(self) -> float:
        folder, engine = self.files.root / "stock", cast(Any, self.trainer.deepspeed)
        self._idle_disk()
        began_s = time.perf_counter()
        engine.save_checkpoint(str(folder), tag=STATE, client_state=universal_checkpoint_info(engine))
        waited_s = time.perf_counter() - began_s
        self.collectives.barrier()
        if self.collectives.rank == 0:
            shutil.rmtree(folder)
        return waited_s

    def _raw_write_s(self) -> float:
        """Return the time that rank 0 takes to write and sync the bytes of a checkpoint in one file."""
        self._idle_disk()
        began_s = time.perf_counter()
        if self.collectives.rank == 0:
            block, path = os.urandom(BLOCK_BYTES), self.files.root / "raw"
            with path.open("wb", buffering=0) as file:
                for _ in range(self.seen["size_bytes"] // BLOCK_BYTES):
                    file.write(block)
                os.fsync(file.fileno())
            path.unlink()
        return time.perf_counter() - began_s

    def _idle_disk(self) -> None:
        if self.collectives.rank == 0:
            os.sync()
        self.collectives.barrier()


def _memory_bytes_per_s() -> float:
    """Return the speed at which this thread copies memory, the best of three."""
    source, target = (torch.ones(MEMORY_BYTES, dtype=torch.uint8) for _ in range(2))
    seconds = []
    for _ in range(3):
        began_s = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began_s)
    return MEMORY_BYTES / min(seconds)


def save(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the times by size. `spec`: folder, rounds, sizes in bytes, quiet_steps (at the largest size)."""
    largest = max(spec["sizes"])
    return [_save(spec, size, spec["quiet_steps"] if size == largest else 0) for size in spec["sizes"]]


def _save(spec: dict[str, Any], state_bytes: int, quiet_steps: int) -> dict[str, Any]:
    files = RunFiles(Path(spec["folder"]) / f"run-{state_bytes}")
    set_seed(1)
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=ENDLESS_STEPS,
        per_device_train_batch_size=ROWS,
        deepspeed=DEEPSPEED,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    plan = SaveSchedule()
    data = [{"seed": torch.ones(1), "labels": torch.ones(1)}] * (64 * ROWS)
    trainer = Trainer(model=Wide(state_bytes), args=args, train_dataset=data, callbacks=[plan])
    files.root.mkdir(parents=True, exist_ok=True)
    collectives = Collectives()
    key = SigningKey.of_installation(Path(spec["folder"]) / "key")
    writer = CheckpointWriter(files, collectives.rank, collectives.world_size, key)
    saves = Saves(trainer, files, collectives, writer, spec["rounds"], quiet_steps)
    plan.steps = saves.plan()
    trainer.train()
    forget_trainer(trainer)
    return saves.seen | {"state_bytes": state_bytes}
