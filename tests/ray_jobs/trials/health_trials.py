"""What the ranks of a test of health signs run: small steered trainings with signs on and off."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

from control_plane.core.health.settings import HealthSettings
from control_plane.storage.layout import RunFiles
from ray_jobs.process import context
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, deepspeed_config, open_server

RATE = 1e-2


class Poison(TrainerCallback):
    """Sets a weight to NaN before a step."""

    def __init__(self, model: torch.nn.Module, step: int) -> None:
        self._model, self._step = model, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self._step:
            with torch.no_grad():
                next(self._model.parameters()).view(-1)[0] = float("nan")


def train(rank: int, spec: dict[str, Any]) -> None:
    """One training; `spec`: root, stage (None: no DeepSpeed), steps, health (None: off), save_every, poison_at,
    checkpointing, commands."""
    from accelerate.state import AcceleratorState

    from ray_jobs.hf.trainer import InteractiveTrainer

    AcceleratorState._reset_state()
    files = RunFiles(Path(spec["root"]))
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    server = open_server(files, spec.get("commands", [])) if rank == 0 else None
    run = context.RunContext(
        files=files,
        connect=lambda: server,  # type: ignore[arg-type,return-value]
        digest_every_steps=1,
        checkpoint_every_steps=spec.get("save_every", 0),
        key_file=files.root / "key",
        health=HealthSettings.model_validate(spec["health"]) if spec["health"] is not None else None,
    )
    context.enter(run)
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=2, n_head=2)
    stage = spec["stage"]
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=spec["steps"],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=spec.get("checkpointing", False),
        learning_rate=RATE,
        weight_decay=0.1,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=stage is None,
        deepspeed=deepspeed_config(stage, "hf") if stage is not None else None,
    )
    model = GPT2LMHeadModel(shape)
    trainer = InteractiveTrainer(model=model, args=args, train_dataset=Blocks(256))
    if poison_at := spec.get("poison_at"):
        trainer.add_callback(Poison(model, poison_at))
    trainer.train()
    context.enter(None)
    del trainer
    gc.collect()


def train_each(rank: int, spec: dict[str, Any]) -> None:
    """Several trainings one after the other in the same processes."""
    for one in spec["trainings"]:
        train(rank, one)
