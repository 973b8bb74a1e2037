"""One generation of a training that may be killed at a given rank, step and phase, and what was seen of its end."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

from control_plane.core.model.commands import Command
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint import writer
from ray_jobs.checkpoint.capture import capture, random_digest, state_digest
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, Witness, deepspeed_config, open_server

PHASES = ("forward", "backward", "boundary", "save")


def die() -> None:
    """As a machine that loses its power: nothing is flushed, nothing is told."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


class Killer(TrainerCallback):
    """Kills this rank in one phase of one step."""

    def __init__(self, trainer: Any, step: int, phase: str) -> None:
        self.trainer, self.step, self.phase = trainer, step, phase
        if phase == "save":
            # The first file of the next save that begins at `step` or later is cut in two.
            write = writer._write_shard

            def half(root: Path, path: str, *rest: Any) -> Any:
                if int(root.name.split("-")[1]) >= step:
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    (root / path).write_bytes(b"half of a")
                    die()
                return write(root, path, *rest)

            writer._write_shard = half
        if phase == "boundary":
            end_step = trainer._steering.boundary

            def boundary(at: int) -> None:
                if at == step:
                    die()
                end_step(at)

            trainer._steering.boundary = boundary

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and self.phase in ("forward", "backward"):
            module = self.trainer.model.transformer.h[-1]
            if self.phase == "forward":
                module.register_forward_hook(lambda *_: die())
            else:
                module.register_full_backward_hook(lambda *_: die())


class Flipper(TrainerCallback):
    """Flips one bit after the optimizer's step and before the boundary, and back before the next step.

    So the training goes on as if nothing had been, and each flip is seen in one digest alone.
    """

    def __init__(self, trainer: Any, flips: list[dict[str, Any]]) -> None:
        self.trainer, self.flips = trainer, {flip["step"]: flip for flip in flips}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flip(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flip(state.global_step)

    def flip(self, step: int) -> None:
        if (flip := self.flips.get(step)) is not None:
            held = live_tensor(self.trainer, flip["name"])
            held.detach().view(-1).view(torch.uint8)[flip.get("byte", 0)] ^= 1 << flip.get("bit", 0)


def live_tensor(trainer: Any, name: str) -> torch.Tensor:
    """What this rank holds of `weights/NAME`, or of `optimizer/NAME/KEY`."""
    kind, _, rest = name.partition("/")
    path, _, key = (rest, "", "") if kind == "weights" else rest.rpartition("/")
    parameter = dict(trainer.model.named_parameters())[path]
    if kind == "weights":
        return getattr(parameter, "ds_tensor", parameter)
    partitions = trainer._steering.training.partitions
    partition = partitions.of(parameter)
    assert partition is not None, f"this rank has no partition of {path}"
    return partition.tensors(partitions.torch_optimizer)["weights" if key == "master" else key]


class Patient(TrainerCallback):
    """Waits for each save before the next step, and until the journal has it and each digest, so that it is known what
    there is, whenever the ranks are killed."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._steering.saver.writer.drain(60)
        link = self.trainer._steering.opened().link
        while link is not None and (link._digests or link._checkpoints):
            link._nudge()
            time.sleep(0.001)


class Asker(TrainerCallback):
    """Asks for what is next in its step, on rank 0."""

    def __init__(self, trainer: Any, server: ControlServer, asked: list[list[Any]]) -> None:
        self.trainer, self.server, self.asked = trainer, server, asked

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, (step, *intents) in enumerate(self.asked):
            uuid = UUID(int=1000 + 10 * number)
            # The first that the journal does not know; those before it have been settled.
            if uuid not in self.server._state.commands:
                if state.global_step + 1 >= step:
                    for place, intent in enumerate(intents):
                        self._ask(Command(uuid=UUID(int=uuid.int + place), author="test", intent=intent))
                return

    def _ask(self, command: Command) -> None:
        loop = self.trainer._steering.opened().link._loop
        asyncio.run_coroutine_threadsafe(self.server.submit(command), loop).result(30)


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One generation, from where the run was, and those that follow it in the same process: one for each rollback.

    `asked`: [step, intent, ...] each, in that step asked for on rank 0. With `fresh` a rollback ends the process.
    """
    logging.basicConfig(level=logging.INFO)
    files = RunFiles(Path(spec["root"]) / "runs" / "crashed")
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    known = _known(files)
    new = [command for command in spec["commands"] if command["uuid"] not in known]
    server = open_server(files, new) if rank == 0 else None
    while True:
        try:
            return _train(files, server, rank, spec)
        except LeaveForBranch:
            if spec.get("fresh"):
                die()
        forget_training()


def _train(files: RunFiles, server: ControlServer | None, rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    from ray_jobs.hf.trainer import InteractiveTrainer

    context.enter(
        context.RunContext(
            files=files,
            connect=lambda: server,  # type: ignore[arg-type,return-value]
            checkpoint_every_steps=spec.get("every_steps", 0),
            digest_every_steps=spec.get("digest_every", 0),
            ranks=spec.get("ranks"),
        )
    )
    set_seed(spec.get("model_seed", 5))
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    optimizer, scheduler, stage = spec["optimizer"], spec["scheduler"], spec["stage"]
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=spec["steps"],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=spec.get("accumulation", 1),
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.1,
        logging_steps=spec.get("logging_steps", 1),
        eval_strategy="steps" if spec.get("eval_steps") else "no",
        eval_steps=spec.get("eval_steps"),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=stage is None,
        deepspeed=deepspeed_config(stage, scheduler, optimizer) if stage is not None else None,
    )
    trainer = InteractiveTrainer(
        model=GPT2LMHeadModel(shape), args=args, train_dataset=Blocks(spec.get("samples", 50)), eval_dataset=Blocks(8)
    )
    witness = Witness(trainer)
    trainer.add_callback(witness)
    if flips := [flip for flip in spec.get("flips", []) if flip["rank"] == rank]:
        trainer.add_callback(Flipper(trainer, flips))
    if spec.get("patient"):
        trainer.add_callback(Patient(trainer))
    if server is not None and spec.get("asked"):
        trainer.add_callback(Asker(trainer, server, spec["asked"]))
    if spec.get("kill") and spec["kill"][0] == rank:
        trainer.add_callback(Killer(trainer, *spec["kill"][1:]))
    trainer.train()
    return _seen(trainer, witness)


def _engines() -> int:
    """Engines of DeepSpeed that this process still holds, that of the last training included."""
    gc.collect()
    return sum(type(each).__name__ == "DeepSpeedEngine" for each in gc.get_objects())


def _known(files: RunFiles) -> set[str]:
    """The uuids that the journal holds already; it is looked at before the server opens it."""
    if not files.journal.is_dir():
        return set()
    return {str(entry.line().get("uuid")) for entry in read(files.journal)}


def _seen(trainer: Any, witness: Witness) -> dict[str, Any]:
    """Digests of weights, optimizer, schedule and random generators at the end, and what each step logged and used."""
    states = capture(trainer._steering.training)
    history = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    return {
        "state": state_digest(states),
        "random": random_digest(states),
        "step": trainer.state.global_step,
        "losses": history,
        "evaluated": evaluated,
        "used": witness.used,
        "began_at": min(witness.used, default=None),
        "weights": float(sum(float(p.double().sum()) for p in trainer.model.parameters())),
        "torch": torch.get_rng_state().sum().item(),
        "engines": _engines(),
    }
