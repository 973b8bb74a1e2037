"""What the ranks of a knob test run: a training whose values are set by commands, or by hand, and what was seen."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

from control_plane.core.model.limits import Limit
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint.universal import Tensors, digest
from ray_jobs.process import context
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, deepspeed_config, open_server

SET_AT = 5
PLANNED_STEPS, STEPS = 8, 11
SAMPLES = 16
"""Four steps an epoch: the planned steps are two epochs, and the steps that are added need a third one."""

WEIGHT_DECAY, BETAS, EPS, CLIPPING, DROPOUT = 0.3, (0.8, 0.95), 1e-6, 0.05, 0.3
LOGGING_STEPS, EVAL_STEPS = 2, 3
BY_HAND = ("weight_decay", "betas", "eps", "gradient_clipping", "dropout")


def optimizer_of(trainer: Any) -> Any:
    """The live optimizer, found another way than the one that is tested."""
    optimizer = trainer.deepspeed.optimizer if trainer.deepspeed is not None else trainer.optimizer
    return getattr(optimizer, "optimizer", optimizer)


class ByHand(TrainerCallback):
    """The reference: sets values directly after a step, as somebody would who edits the training script."""

    def __init__(self, trainer: Any, names: list[str]) -> None:
        self.trainer, self.names = trainer, names

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == PLANNED_STEPS:
            control.should_evaluate = True  # as Transformers does at what was to be the end; it draws random numbers
        if state.global_step != SET_AT:
            return
        state.logging_steps, state.eval_steps = LOGGING_STEPS, EVAL_STEPS
        for name in self.names:
            getattr(self, name)()

    def weight_decay(self) -> None:
        for group in optimizer_of(self.trainer).param_groups:
            if group["weight_decay"] > 0:
                group["weight_decay"] = WEIGHT_DECAY

    def betas(self) -> None:
        for group in optimizer_of(self.trainer).param_groups:
            group["betas"] = BETAS

    def eps(self) -> None:
        for group in optimizer_of(self.trainer).param_groups:
            group["eps"] = EPS

    def gradient_clipping(self) -> None:
        engine = self.trainer.deepspeed
        if engine is None:
            self.trainer.args.max_grad_norm = CLIPPING
        elif hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = CLIPPING
        else:  # without ZeRO the engine itself clips
            engine._config.gradient_clipping = CLIPPING

    def dropout(self) -> None:
        for module in self.trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = DROPOUT


class Witness(TrainerCallback):
    """What each step used, on this rank, and when Transformers logged and evaluated."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.used: dict[int, dict[str, Any]] = {}
        self.logged: list[int] = []
        self.evaluated: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups, engine = optimizer_of(self.trainer).param_groups, self.trainer.deepspeed
        self.used[state.global_step + 1] = {
            "weight_decay": [group["weight_decay"] for group in groups],
            "betas": [list(group["betas"]) for group in groups],
            "eps": [group["eps"] for group in groups],
            "lr": [group["lr"] for group in groups],
            "gradient_clipping": engine.optimizer.clip_grad if engine is not None else args.max_grad_norm,
            "dropout": sorted({m.p for m in self.trainer.model.modules() if isinstance(m, torch.nn.Dropout)}),
        }

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logged.append(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append(state.global_step)


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One training; `spec`: root, stage, optimizer, commands, by_hand (names), steps, limits."""
    from accelerate.state import AcceleratorState

    from ray_jobs.hf.trainer import InteractiveTrainer

    AcceleratorState._reset_state()
    stage = spec["stage"]
    if stage is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # the training before this one has set it
    files = RunFiles(Path(spec["root"]))
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    server = open_server(files, spec.get("commands", [])) if rank == 0 else None
    limits = {name: Limit.model_validate(limit) for name, limit in spec.get("limits", {}).items()}
    context.enter(context.RunContext(files=files, connect=lambda: server, limits=limits))  # type: ignore[arg-type,return-value]
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    trainer = InteractiveTrainer(
        model=GPT2LMHeadModel(shape),
        args=_arguments(files, stage, spec["steps"], spec["optimizer"]),
        train_dataset=Blocks(SAMPLES),
        eval_dataset=Blocks(4),
    )
    witness = Witness(trainer)
    trainer.add_callback(witness)
    if "by_hand" in spec:
        trainer.add_callback(ByHand(trainer, spec["by_hand"]))
    trainer.train()
    context.enter(None)
    seen: dict[str, Any] = {"used": witness.used, "logged": witness.logged, "evaluated": witness.evaluated}
    seen |= {"step": trainer.state.global_step, "weights": digest(_weights(trainer))}
    del trainer
    gc.collect()
    return seen


def _arguments(files: RunFiles, stage: int | None, steps: int, optimizer: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant_with_warmup",  # does not depend on the number of steps
        warmup_steps=2,
        weight_decay=0.1,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=stage is None,
        deepspeed=deepspeed_config(stage, "hf", optimizer) if stage is not None else None,
    )


def _weights(trainer: Any) -> Iterator[tuple[str, Tensors]]:
    """Collective. All weights in full precision, bit for bit."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in sorted(trainer.model.named_parameters()):
        whole = parameter if trainer.deepspeed is None else safe_get_full_fp32_param(parameter)
        yield name, {"fp32": whole}


def train_each(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Several trainings one after the other in the same processes: importing everything costs more than training."""
    return [train(rank, one) for one in spec["trainings"]]
