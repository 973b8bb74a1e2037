"""Steerable training with a diary: the time and the learning rate of each step on each rank.

    witnessed.py FOLDER SHAPE MAX_STEPS       SHAPE is `small` (fast steps) or `default` (that of the shipped config)

Each rank writes `FOLDER/SHAPE-rank-R.json` when the training ends: one list `[step, begin_s, rate, end_s]` a step.
`rate` is read from the live optimizer of DeepSpeed's engine right before the step; times are Unix time.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from benchmarks.harness.training import arguments, fresh_model, random_blocks, shipped_config
from ray_jobs.config.run_config import RunConfig
from ray_jobs.hf.trainer import make_interactive

SteerableTrainer = make_interactive(Trainer)

TRAINING_BLOCKS = 2048
SMALL_MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 32}
SMALL_BLOCK_TOKENS = 32
SMALL_BATCH = 2


class RateDiary(TrainerCallback):
    """Callback that records each step; added after Steerway's own, so that a step includes its boundary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: Any = None
        self.pages: list[tuple[int, float, float, float]] = []
        self._begun = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the learning rate that this step uses."""
        self._begun = (time.time(), float(self.trainer.deepspeed.optimizer.param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record a step."""
        begin_s, rate = self._begun
        self.pages.append((state.global_step, begin_s, rate, time.time()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the diary atomically."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.pages))
        part.replace(self.path)


def shaped(config: RunConfig, shape: str) -> RunConfig:
    """Return the shipped config, or one with a model whose steps take a few milliseconds."""
    if shape == "default":
        return config
    assert config.model is not None
    assert config.data is not None
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=SMALL_MODEL),
            "data": config.data.model_copy(update={"block_size": SMALL_BLOCK_TOKENS}),
            "training": {**config.training, "per_device_train_batch_size": SMALL_BATCH},
        }
    )


def main(folder: Path, shape: str, max_steps: int) -> None:
    """Train until `stop` is sent, or for `max_steps`."""
    config = shaped(shipped_config(), shape)
    args = arguments(config, folder / f"{shape}-trainer", max_steps)
    diary = RateDiary(folder / f"{shape}-rank-{args.process_index}.json")
    trainer = SteerableTrainer(
        model=fresh_model(config),
        args=args,
        train_dataset=random_blocks(config, TRAINING_BLOCKS),
    )
    diary.trainer = trainer
    trainer.add_callback(diary)
    trainer.train()


if __name__ == "__main__":
    main(folder=Path(sys.argv[1]), shape=sys.argv[2], max_steps=int(sys.argv[3]))
