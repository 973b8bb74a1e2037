"""What the ranks of a test run: small steered trainings with DeepSpeed, and what was seen in them."""

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

from control_plane.core.model.commands import Command
from control_plane.core.model.records import RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.transfer import adopt, read_origin
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.process import context

BLOCK_TOKENS, VOCABULARY = 16, 64


class Blocks(torch.utils.data.Dataset):
    """Deterministic token blocks."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.ids = torch.randint(0, VOCABULARY, (size, BLOCK_TOKENS), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def deepspeed_config(stage: int, scheduler: str, optimizer: str = "deepspeed") -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if optimizer == "deepspeed":
        adam = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
        config["optimizer"] = {"type": "AdamW", "params": adam}
    if scheduler == "deepspeed":
        warmup = {"warmup_min_lr": 0, "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
        config["scheduler"] = {"type": "WarmupDecayLR", "params": warmup | {"warmup_type": "linear"}}
    return config


class Witness(TrainerCallback):
    """Reads, on its own, the learning rates that each step used, and what Transformers logged for it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.used: dict[int, list[float]] = {}
        self.logged: dict[int, float] = {}
        self.losses: dict[int, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engine = self.trainer.deepspeed
        optimizer = engine.optimizer if engine is not None else self.trainer.optimizer
        self.used[state.global_step + 1] = [float(group["lr"]) for group in optimizer.param_groups]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logged[state.global_step], self.losses[state.global_step] = logs["learning_rate"], logs["loss"]


def open_server(files: RunFiles, commands: list[dict[str, Any]]) -> ControlServer:
    """A control server in rank 0's own process, with these commands already accepted."""
    created = RunCreated(run=files.run, name=files.run, author="test", config_sha256="0" * 64)
    server = ControlServer(
        created,
        Journal.open(files.journal),
        MetricsStore(files.metrics),
        origin=read_origin(files),
        adopt=partial(adopt, files),
    )

    async def accept() -> None:
        for command in commands:
            await server.submit(Command.model_validate(command))

    asyncio.run(accept())
    return server


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One steered training; `spec`: root, stage, scheduler, optimizer, steps, commands."""
    from accelerate.state import AcceleratorState

    from ray_jobs.hf.trainer import InteractiveTrainer

    AcceleratorState._reset_state()
    files = RunFiles(Path(spec["root"]))
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    server = open_server(files, spec["commands"]) if rank == 0 else None
    context.enter(context.RunContext(files=files, connect=lambda: server, facts={}))  # type: ignore[arg-type,return-value]
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    stage = spec["stage"]
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=spec["steps"],
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        warmup_steps=2,
        lr_scheduler_type=spec.get("lr_scheduler_type", "linear"),
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=spec.get("use_cpu", stage is None),
        deepspeed=deepspeed_config(stage, spec["scheduler"], spec["optimizer"]) if stage is not None else None,
    )
    trainer = InteractiveTrainer(
        model=GPT2LMHeadModel(shape), args=args, train_dataset=Blocks(256), eval_dataset=Blocks(16)
    )
    witness = Witness(trainer)
    trainer.add_callback(witness)
    trainer.train()
    context.enter(None)
    seen = {"used": witness.used, "logged": witness.logged, "losses": witness.losses, "step": trainer.state.global_step}
    del trainer
    gc.collect()
    return seen


def train_each(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Several trainings one after the other in the same processes: importing everything costs more than training."""
    return [train(rank, one) for one in spec["trainings"]]


def train_with_a_broken_rank(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """A training in which one rank's optimizer does not take one value."""
    from ray_jobs.steering.schedule import SteeredSchedule

    take = SteeredSchedule.set

    def refuse_one_value(self: SteeredSchedule, index: int, value: float, mode: Any) -> None:
        take(self, index, value * 2 if value == spec["broken_value"] else value, mode)

    if rank == spec["broken_rank"]:
        SteeredSchedule.set = refuse_one_value  # type: ignore[method-assign]
    return train(rank, spec)


def train_unseen_by_accelerate(rank: int, spec: dict[str, Any]) -> str:
    """A training in which accelerate believes that each rank is alone."""
    from accelerate.state import PartialState

    from control_plane.core.model.errors import Invalid

    ours = PartialState._prepare_backend
    PartialState._prepare_backend = ours.__closure__[0].cell_contents  # type: ignore[method-assign,index]
    try:
        train(rank, spec | {"stage": 1, "scheduler": "hf", "optimizer": "deepspeed", "steps": 2, "commands": []})
    except Invalid as refusal:
        return refusal.reason
    return "nobody complained"
