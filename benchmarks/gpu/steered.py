"""Small steered training without Ray: the control server runs in rank 0, and commands are sent at given steps."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import NotFound
from control_plane.core.model.records import RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.checkpoint.capture import capture, state_digest
from ray_jobs.hf.trainer import steering_of
from ray_jobs.process import context
from ray_jobs.rank.link import Link
from ray_jobs.steering.rollback import LeaveForBranch, forget_training

SUBMIT_WAIT_S = 30.0
SAVE_WAIT_S = 60.0
SAMPLES = 512

Intent = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Environment of a stage. `rehearse`: on CPUs, with tiny sizes, to test the check itself."""

    rank: int
    world_size: int
    rehearse: bool
    folder: Path

    @property
    def device(self) -> str:
        """Kind of device of the ranks."""
        return "cpu" if self.rehearse else "cuda"


@dataclass(frozen=True)
class Training:
    """Settings of a training. `commands`: (step, intent), sent by rank 0 in that step, each once."""

    name: str
    steps: int
    stage: int = 2
    precision: str = "bf16"
    optimizer: str = "torch"
    save_every: int = 0
    commands: tuple[tuple[int, Intent], ...] = ()
    layers: int = 2
    width: int = 64
    vocabulary: int = 256
    block: int = 32
    batch: int = 4
    dropout: float = 0.1
    offload_pauses: bool = False
    resume_after_s: float | None = None
    hang_after_s: float | None = None
    digest_steps: bool = False
    callbacks: tuple[Callable[[Any], TrainerCallback], ...] = ()
    wrap_model: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model


@dataclass
class Observed:
    """Observations of one rank, in the order of the steps; a rollback repeats some."""

    rates: list[tuple[int, list[float]]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    digests: list[tuple[int, str]] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)
    lives: int = 1
    memory_bytes: list[int] = field(default_factory=list)
    paused: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)


class RandomTokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Dataset of random token blocks, the same on every rank."""

    def __init__(self, training: Training) -> None:
        generator = torch.Generator().manual_seed(7)
        self._ids = torch.randint(0, training.vocabulary, (SAMPLES, training.block), generator=generator)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}


class Recorder(TrainerCallback):
    """Callback that records the learning rate of each step, its loss, and a digest of the state before it."""

    def __init__(self, trainer: Trainer, seen: Observed, digest_steps: bool) -> None:
        self._trainer, self._seen, self._digest_steps = trainer, seen, digest_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the live values that the step uses."""
        engine: Any = self._trainer.deepspeed
        groups = engine.optimizer.param_groups
        self._seen.rates.append((state.global_step + 1, [float(group["lr"]) for group in groups]))
        # Each save ends before the next step, so that a rollback finds its checkpoint.
        steering_of(self._trainer).saver.writer.drain(SAVE_WAIT_S)
        if self._digest_steps:
            self._seen.digests.append((state.global_step, state_digest(capture(steering_of(self._trainer).training))))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Record the loss of a step."""
        if logs and "loss" in logs:
            self._seen.losses.append((state.global_step, float(logs["loss"])))


class CommandSender(TrainerCallback):
    """Callback of rank 0 that sends each command in its step, and resumes after a pause."""

    def __init__(self, trainer: Trainer, server: ControlServer, training: Training, sent: dict[int, UUID]) -> None:
        self._trainer, self._server, self._training, self._sent = trainer, server, training, sent

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send due commands, at most one rollback per step."""
        for number, (step, intent) in enumerate(self._training.commands):
            if number in self._sent or state.global_step + 1 < step:
                continue
            try:
                self._sent[number] = self.submit(intent)
            except NotFound:
                return  # the journal has no such checkpoint yet: retried in the next step
            if intent["kind"] == "pause" and self._training.resume_after_s is not None:
                threading.Timer(self._training.resume_after_s, self.submit, ({"kind": "resume"},)).start()
            if intent["kind"] == "rollback":
                return

    def submit(self, intent: Intent) -> UUID:
        """Send one command to the control server of this process. Raises the server's errors."""
        command = Command.model_validate({"uuid": str(uuid4()), "author": "gpu-check", "intent": intent})
        loop = cast(Link, steering_of(self._trainer).opened().link)._loop
        asyncio.run_coroutine_threadsafe(self._server.submit(command), loop).result(SUBMIT_WAIT_S)
        return command.uuid


def deepspeed_config(training: Training) -> dict[str, Any]:
    """Return DeepSpeed's settings for this training, which do not depend on the order of gradients."""
    adam = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": training.stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if training.optimizer == "fused":  # DeepSpeed's own kernel: built with nvcc when it is first used
        config["optimizer"] = {"type": "AdamW", "params": adam}
    if training.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if training.precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1}
    return config


def steer(setting: Setting, training: Training, seen: Observed | None = None) -> Observed:
    """Collective. Train to the end, through every rollback, and return this rank's observations.

    Raises the errors of the training.
    """
    seen = seen or Observed()
    files = RunFiles(setting.folder / "runs" / training.name)
    server = _open_server(files) if setting.rank == 0 else None
    sent: dict[int, UUID] = {}
    dist.barrier()
    while True:
        try:
            _train(setting, training, files, server, sent, seen)
            break
        except LeaveForBranch:
            seen.lives += 1
        finally:
            context.enter(None)
        forget_training()
        seen.memory_bytes.append(memory_bytes(setting))
    if server is not None:
        seen.settled = [_settled(server, uuid) for _, uuid in sorted(sent.items())]
    return seen


def memory_bytes(setting: Setting) -> int:
    """Return the memory of this rank's tensors on its device; on CPUs, the process's resident memory."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def _open_server(files: RunFiles) -> ControlServer:
    files.root.mkdir(parents=True, exist_ok=True)
    created = RunCreated(run=files.run, name=files.run, author="gpu-check", config_sha256="0" * 64)
    return ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))


def _settled(server: ControlServer, uuid: UUID) -> dict[str, Any]:
    settled = server._state.commands[uuid].settled
    return {} if settled is None else settled.model_dump(mode="json")


def _train(
    setting: Setting,
    training: Training,
    files: RunFiles,
    server: ControlServer | None,
    sent: dict[int, UUID],
    seen: Observed,
) -> None:
    from accelerate.state import AcceleratorState

    from ray_jobs.hf.trainer import InteractiveTrainer

    AcceleratorState._reset_state()
    connect: Any = lambda: server  # noqa: E731
    context.enter(
        context.RunContext(
            files=files,
            connect=connect,
            checkpoint_every_steps=training.save_every,
            key_file=setting.folder / "key",
            offload_pauses=training.offload_pauses,
            hang_after_s=training.hang_after_s,
        )
    )
    set_seed(5)
    shape = GPT2Config(
        vocab_size=training.vocabulary,
        n_positions=training.block,
        n_embd=training.width,
        n_layer=training.layers,
        n_head=max(1, training.width // 64),
        resid_pdrop=training.dropout,
        embd_pdrop=training.dropout,
        attn_pdrop=training.dropout,
    )
    model: Any = training.wrap_model(GPT2LMHeadModel(shape))
    trainer = InteractiveTrainer(
        model=model, args=training_arguments(training, files.root / "trainer"), train_dataset=RandomTokens(training)
    )
    trainer.add_callback(Recorder(trainer, seen, training.digest_steps))
    for make in training.callbacks:
        trainer.add_callback(make(trainer))
    if server is not None:
        trainer.add_callback(CommandSender(trainer, server, training, sent))
    trainer.train()
    seen.final = _final(trainer)


def training_arguments(training: Training, output_dir: Path) -> TrainingArguments:
    """Return the Trainer's settings for this training."""
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        optim="adamw_torch_fused",
        deepspeed=deepspeed_config(training),
    )


def _final(trainer: Trainer) -> dict[str, Any]:
    """Return the live values at the end: of each knob that a check has set, the value for the next step."""
    engine: Any = trainer.deepspeed
    first = engine.optimizer.param_groups[0]
    dropouts = {module.p for module in engine.module.modules() if isinstance(module, torch.nn.Dropout)}
    return {
        "step": trainer.state.global_step,
        "betas": list(first["betas"]),
        "eps": first["eps"],
        "weight_decay": max(group["weight_decay"] for group in engine.optimizer.param_groups),
        "gradient_clipping": float(engine.gradient_clipping()),
        "dropout": sorted(dropouts),
        "skipped_steps": int(engine.skipped_steps),
        "optimizer": type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__,
        "ended_at": time.time(),
    }
