"""Trainings one after the other in one process, each released as a rollback releases it: what stays in memory."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from ray_jobs.steering.rollback import forget_training, release
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, deepspeed_config


def left(rank: int, spec: dict[str, Any]) -> list[dict[str, int]]:
    """Engines and bytes of tensors that are held after each of `spec["times"]` trainings with ZeRO `spec["stage"]`."""
    return [_train_and_release(Path(spec["root"]), spec["stage"]) for _ in range(spec["times"])]


def _train_and_release(root: Path, stage: int) -> dict[str, int]:
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    args = TrainingArguments(
        output_dir=str(root / "trainer"),
        max_steps=2,
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed_config(stage, "hf"),
    )
    trainer = Trainer(model=GPT2LMHeadModel(shape), args=args, train_dataset=Blocks(64))
    trainer.train()
    release(trainer.deepspeed)
    trainer.callback_handler.callbacks.clear()
    del trainer
    forget_training()
    held = gc.get_objects()
    tensors = {each.data_ptr(): each.nbytes for each in held if isinstance(each, torch.Tensor) and each.numel()}
    return {
        "engines": sum(type(each).__name__ == "DeepSpeedEngine" for each in held),
        "bytes": sum(tensors.values()),
    }
