"""Rank of the benchmark of automatic mixtures: one steered training on sources, whose losses are measured or not.

    off, again   health signs as shipped, no losses of sources
    on           and the losses of sources, every ten steps

All arms run in one process and one training, in turns, so that a drift of the machine affects them alike.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.harness.training import arguments, fresh_model, random_blocks, shipped_config
from benchmarks.step_cost.signs_rank import make_server
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.data import SourceSettings
from control_plane.storage.layout import RunFiles
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.mixture.making import Making
from ray_jobs.health.source_losses import SOURCE_STEPS
from ray_jobs.hf import trainer as trainer_module
from ray_jobs.hf.trainer import InteractiveTrainer
from ray_jobs.process import context

ARMS = ("off", "on", "again")
SOURCES = 4
RECORDS = 512
NEVER = 1
"""A step at which nothing is measured."""


def plan(rounds: int) -> list[tuple[int, str]]:
    """Return the round and the arm of each block. Every other round is reversed, so that a steady drift cancels."""
    return [(number, arm) for number in range(rounds) for arm in (ARMS if number % 2 == 0 else ARMS[::-1])]


def train(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Train and return the times of the blocks. `spec`: rounds, block_steps, warm_up_steps, root.

    A block of a multiple of ten steps has the same number of measured steps in every turn.
    """
    config, files = shipped_config(), RunFiles(Path(spec["root"]))
    files.root.mkdir(parents=True, exist_ok=True)
    server = make_server(files) if rank == 0 else None
    connect: Any = lambda: server  # noqa: E731
    context.enter(context.RunContext(files, connect, key_file=files.root / "key", health=HealthSettings()))
    turns = plan(spec["rounds"])
    trainer = InteractiveTrainer(
        model=fresh_model(config),
        args=arguments(config, files.root / "trainer", spec["warm_up_steps"] + len(turns) * spec["block_steps"] + 1),
        train_dataset=_sources(files.root / f"rank-{rank}", config),
    )
    blocks = MixtureBlocks(trainer, turns, spec["block_steps"], spec["warm_up_steps"])
    trainer.callback_handler.callbacks.insert(0, blocks)
    trainer.train()
    return blocks.seen


def _sources(folder: Path, config: Any) -> MixtureDataset:
    """Return a mixture of equal sources, whose records are random blocks of tokens."""
    folder.mkdir(parents=True)
    settings = {}
    for number in range(SOURCES):
        path = folder / f"source-{number}.jsonl"
        path.write_text("".join(json.dumps({"id": at}) + "\n" for at in range(RECORDS)))
        about = {"format": "jsonl", "path": str(path), "weight": 1.0, "fields": {"id": "integer"}}
        settings[f"source-{number}"] = SourceSettings.model_validate(about)
    samples = random_blocks(config, RECORDS)
    return MixtureDataset(settings, config.seed, Making(lambda record: samples[record["id"]]), folder=folder)


class MixtureBlocks(TrainerCallback):
    """Callback before all others that switches the measurement at each block, and times the block."""

    def __init__(self, trainer: Any, turns: list[tuple[int, str]], block_steps: int, warm_up_steps: int) -> None:
        if block_steps % SOURCE_STEPS or warm_up_steps % SOURCE_STEPS:
            raise ValueError(f"blocks and warm-up have to be multiples of {SOURCE_STEPS} steps")
        self._trainer, self._turns = trainer, turns
        self._block_steps, self._warm_up_steps = block_steps, warm_up_steps
        self._begin: Callable[[int], None] | None = None
        self._in_line_us = self._in_line_cpu_us = self._wall_s = self._cpu_s = 0.0
        self.seen: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start a block if it is due: the step before is over, including its boundary."""
        made = state.global_step - self._warm_up_steps
        if made < 0 or made % self._block_steps:
            return
        block, sources = made // self._block_steps, self._trainer._steering.health.signs.sources
        if block > 0:
            wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
            number, arm = self._turns[block - 1]
            times = {"wall_s": wall_s, "cpu_s": cpu_s, "in_line_us": self._in_line_us / self._block_steps}
            times["in_line_cpu_us"] = self._in_line_cpu_us / self._block_steps
            self.seen.append({"round": number, "arm": arm, "steps": self._block_steps} | times)
        else:
            self._time_the_parts(sources)
        is_on = block < len(self._turns) and self._turns[block][1] == "on"
        begin = self._begin
        assert begin is not None
        sources.begin = begin if is_on else lambda step: begin(NEVER)
        self._in_line_us = self._in_line_cpu_us = 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def _time_the_parts(self, sources: Any) -> None:
        """Have all that a step waits for, for the losses of sources alone, take its time."""
        self._begin = self._timed(sources.begin)
        sources.take = self._timed(sources.take)
        self._trainer.note_sample_losses = self._timed(self._trainer.note_sample_losses)
        trainer_module.sample_losses = self._timed(trainer_module.sample_losses)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any) -> Any:
            begun_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            answer = call(*args)
            self._in_line_cpu_us += (time.thread_time_ns() - cpu_ns) / 1e3
            self._in_line_us += (time.perf_counter_ns() - begun_ns) / 1e3
            return answer

        return measured
