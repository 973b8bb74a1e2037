"""Rank of the health trials: real steered trainings, one after the other, with a control server in rank 0's process.

The training is a script's own loop with `TrainingSession`, as users write it, and the signs are those of any run. A
fault changes the script's data, gradients, weights or surroundings; nothing of what is measured is made up.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from mmap import mmap
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.health import models
from benchmarks.health.answers import keep
from benchmarks.health.trials import EVALUATE_EVERY_STEPS, HOOK_STEPS, SAVE_EVERY_STEPS, Trial
from control_plane.core.health.settings import CheckpointSettings, HealthSection, HealthSettings, StallSettings
from control_plane.core.model.records import AlertRaised, RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage import failpoints
from control_plane.storage.journal import writer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.rollback import forget_training

BATCH = 32
WARM_UP_STEPS = 20
CLIPPING = 1.0
EVALUATION_BATCHES = 4
MIB = 1 << 20
ROOM_MIB, LEAKED_MIB, MOST_LEAKS = 40, 8, 40
SPIKE_STEPS = 128
VANISHED, EXPLODED = 1e-9, 1000.0
CLEARLY = 12.0
"""Factor above the largest norm before, for faults of the gradient that are to be clear by themselves."""

SLOW_STEPS = 60
"""Duration of the faults that make steps slow: enough to be found, and short."""

SETTINGS = HealthSettings(hook_steps=HOOK_STEPS)
"""As shipped, but for hooks more often, so that a trial has enough of them."""

SHORT: Mapping[str | None, dict[str, HealthSection]] = {
    "stalled_phase": {"stall": StallSettings(least_s=1.0)},
    "checkpoint_too_old": {"checkpoints": CheckpointSettings(least_s=0.0)},
}
"""Of two faults, whose trials are short: what takes half a minute in a real training takes a second in them, and an age
in seconds means nothing where a hundred steps take a fifth of one."""

SAVE_WITHIN_S = 60.0


def run_trials(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Collective. Run the trials, and return of each its alerts and losses, on rank 0.

    `spec`: trials, folder, answers (the file to which each answer is added, or None) and code (its digest).
    """
    answers = []
    for given in spec["trials"]:
        trial = Trial(**given)
        began_s = time.monotonic()
        answer = _run(trial, rank, Path(spec["folder"]))
        answers.append(answer | {"name": trial.name, "seconds": time.monotonic() - began_s})
        if rank == 0 and spec["answers"]:
            keep(Path(spec["answers"]), spec["code"], trial, answers[-1])
    return answers


def _run(trial: Trial, rank: int, folder: Path) -> dict[str, Any]:
    files = RunFiles(folder / "runs" / trial.name)
    server = None
    if rank == 0:
        files.root.mkdir(parents=True)
        created = RunCreated(run=files.run, name=files.run, author="trials", config_sha256="0" * 64)
        server = ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))
    dist.barrier()
    connect: Any = lambda: server  # noqa: E731
    context.enter(
        context.RunContext(
            files=files,
            connect=connect,
            checkpoint_every_steps=SAVE_EVERY_STEPS,
            retention={"keep_last": 2},
            key_file=folder / "key",
            health=SETTINGS.model_copy(update=SHORT.get(trial.fault, {})),
        )
    )
    torch.manual_seed(trial.seed)
    try:
        losses = Script(trial, rank).train()
    finally:
        context.enter(None)
        failpoints.arm("")
        forget_training()
    if server is None:
        return {}
    records = [entry.record for entry in writer.read(files.journal)]
    alerts = [record.alert for record in records if isinstance(record, AlertRaised)]
    told = [[one.kind, one.subject, one.step, one.onset_step, one.sentence] for one in alerts]
    return {"alerts": told, "losses": losses}


class Script:
    """Training script of a trial, with its fault."""

    def __init__(self, trial: Trial, rank: int) -> None:
        self._trial, self._rank = trial, rank
        self._model: nn.Module = models.Transformer() if trial.model == "transformer" else models.Classifier()
        self._old, self._new = self._batches(trial.seed), self._batches(trial.seed + 50_000)
        self._held_out = [next(self._batches(trial.seed, of_rank=9)) for _ in range(EVALUATION_BATCHES)]
        self._leaked: list[torch.Tensor] = []
        self._pages: list[mmap] = []
        self._norms: list[float] = []
        self._block_norms: list[float] = []
        self._engine: Any = None
        if trial.stage is None:
            self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=trial.rate, weight_decay=0.01)
        else:
            import deepspeed

            self._engine, *_ = deepspeed.initialize(model=self._model, config=_deepspeed_config(trial))
            self._optimizer = self._engine.optimizer

    def _batches(self, seed: int, of_rank: int | None = None) -> Iterator[models.Batch]:
        rank = self._rank if of_rank is None else of_rank
        if self._trial.model == "transformer":
            return models.texts(seed, rank, BATCH, models.chain(seed))
        return models.points(seed, rank, BATCH, models.centres(seed))

    def train(self) -> list[float]:
        """Collective. Train to the end, and return this rank's losses."""
        trial, losses = self._trial, list[float]()
        engine = self._engine
        session = (
            TrainingSession(engine=engine, total_steps=trial.steps)
            if engine is not None
            else TrainingSession(self._model, self._optimizer, total_steps=trial.steps)
        )
        with session:
            for made in session.steps():
                step = made + 1
                batch = self._batch(step)
                with self._slow_forward(step):
                    loss = self._forward(batch)
                metrics = self._descend(step, loss)
                losses.append(float(loss.detach()))
                metrics |= self._evaluate(step)
                self._disturb_after(step, session)
                session.step(metrics)
                if self._is("checkpoint_too_old"):
                    # Which checkpoints there are is not to be a matter of time: steps take milliseconds.
                    _steering(session).saver.writer.drain(SAVE_WITHIN_S)
        return losses

    # --- The healthy training ---

    def _forward(self, batch: models.Batch) -> torch.Tensor:
        return models.loss_of(self._engine if self._engine is not None else self._model, batch)

    def _rate(self, step: int) -> float:
        """Return the learning rate: a warm-up, and a linear decay to a tenth."""
        trial = self._trial
        if step <= WARM_UP_STEPS:
            return trial.rate * step / WARM_UP_STEPS
        return trial.rate * (1.0 - 0.9 * (step - WARM_UP_STEPS) / (trial.steps - WARM_UP_STEPS))

    def _descend(self, step: int, loss: torch.Tensor) -> dict[str, float | torch.Tensor]:
        if self._engine is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate(step)
            # A loss that is multiplied by infinity has gradients that are not finite.
            self._engine.backward(loss * float("inf") if self._is("gradient_overflow", step, 1) else loss)
            self._engine.step()
            return {"loss": loss.detach()}
        self._optimizer.zero_grad()
        loss.backward()
        if dist.get_world_size() > 1:
            for parameter in self._model.parameters():
                dist.all_reduce(parameter.grad)
                assert parameter.grad is not None
                parameter.grad /= dist.get_world_size()
        self._disturb_gradients(step)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), CLIPPING)
        self._norms.append(float(norm))
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0 if self._is("plateau", step) else self._rate(step)
        if isfinite(float(norm)):
            self._optimizer.step()
        return {"loss": loss.detach(), "grad_norm": norm}

    def _evaluate(self, step: int) -> dict[str, float | torch.Tensor]:
        """Return the loss on held-out data of the kind that the run began with, now and then."""
        if step % EVALUATE_EVERY_STEPS:
            return {}
        if self._is("stalled_phase") and step >= self._trial.onset and not self._leaked:
            self._leaked.append(torch.empty(1))
            time.sleep(1.5)
        model = self._engine if self._engine is not None else self._model
        model.eval()
        with torch.no_grad():
            loss = torch.stack([models.loss_of(model, batch) for batch in self._held_out]).mean()
        model.train()
        return {"eval_heldout_old_loss": loss}

    # --- Faults ---

    def _is(self, kind: str, step: int | None = None, steps: int | None = None) -> bool:
        """Return whether this is the trial's fault, and in force at `step`: for `steps`, or to the end."""
        if self._trial.fault != kind:
            return False
        if step is None:
            return True
        since = step - self._trial.onset
        return since >= 0 and (steps is None or since < steps)

    def _batch(self, step: int) -> models.Batch:
        if self._is("data_starvation", step, SLOW_STEPS):
            time.sleep(0.08)
        inputs, wanted = next(self._new if self._is("forgetting", step) else self._old)
        if self._is("non_finite", step, 1):
            inputs = inputs.clone()
            inputs[0] = float("nan")
        if self._is("loss_spike", step, 3):
            inputs, wanted = inputs * 30, wanted.roll(1, 0)
        return inputs, wanted

    @contextmanager
    def _slow_forward(self, step: int) -> Iterator[None]:
        hook = None
        if self._is("straggling_rank", step, SLOW_STEPS) and self._rank == 1:
            hook = self._model.get_submodule("head").register_forward_pre_hook(lambda *_: time.sleep(0.1))
        yield
        if hook is not None:
            hook.remove()

    def _disturb_gradients(self, step: int) -> None:
        if self._is("gradient_spike", step, 2):
            norm = nn.utils.get_total_norm(one.grad for one in self._model.parameters() if one.grad is not None)
            self._multiply_gradients(self._model, CLEARLY * self._largest_norm() / float(norm))
        if self._is("slow_divergence", step):
            self._multiply_gradients(self._model, -1.0)
        if self._is("vanishing_layer", step):
            self._multiply_gradients(self._block(0), VANISHED)
        if self._is("exploding_layer"):
            self._explode(step)

    def _explode(self, step: int) -> None:
        """Multiply a block's gradient, clearly: in a run that has nearly converged, noise alone spans decades."""
        norm = float(nn.utils.get_total_norm(one.grad for one in self._block(0).parameters()))
        if step < self._trial.onset:
            self._block_norms.append(norm)
            return
        least = max(EXPLODED * median(self._block_norms), CLEARLY * max(self._block_norms))
        self._multiply_gradients(self._block(0), max(EXPLODED, least / norm))

    def _largest_norm(self) -> float:
        onset = self._trial.onset - 1
        return max(self._norms[onset - SPIKE_STEPS : onset])

    def _multiply_gradients(self, module: nn.Module, factor: float) -> None:
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.grad *= factor

    def _block(self, index: int) -> Any:
        return self._model.get_submodule(f"blocks.{index}")

    @torch.no_grad()
    def _disturb_after(self, step: int, session: TrainingSession) -> None:
        """Plant what does not lie in data or gradients, after the step before the onset."""
        if self._is("dead_units", step + 1):
            self._block(1).up.bias.fill_(-100.0)
        if self._is("attention_blow_up", step + 1, 1):
            self._block(0).query_key_value.weight[: 2 * models.WIDTH] *= 20
        if self._is("checkpoint_too_old", step + 1, 1):
            failpoints.arm("manifest.file.before_create=error:ENOSPC")
        if self._is("memory_near_limit", step + 1):
            self._leak(step + 1, session)

    def _leak(self, step: int, session: TrainingSession) -> None:
        """Lower the limit once, so that the alert's threshold is just above what is used; then use more, step by step.

        Pages of the kernel's own: what an earlier trial has leaked and freed stays with the allocator, which would take
        from there without using more.
        """
        health = _steering(session).health
        assert health is not None
        memory = health.signs._memory
        if step == self._trial.onset:
            memory.limit_bytes = (memory.used_bytes() + ROOM_MIB * MIB) / SETTINGS.memory.share
        if step < self._trial.onset + MOST_LEAKS:
            pages = mmap(-1, LEAKED_MIB * MIB)
            pages.write(bytes(len(pages)))
            self._pages.append(pages)


def _steering(session: TrainingSession) -> SteeredRun:
    assert session._steering is not None
    return session._steering


def _deepspeed_config(trial: Trial) -> dict[str, Any]:
    precision = {"bf16": {"enabled": True, "check_grad_overflow": True}} if trial.fault == "gradient_overflow" else {}
    return precision | {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": CLIPPING,
        "optimizer": {"type": "AdamW", "params": {"lr": trial.rate, "weight_decay": 0.01, "torch_adam": True}},
        "zero_optimization": {"stage": trial.stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
