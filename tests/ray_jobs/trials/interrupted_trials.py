"""Trainings with planted faults that are interrupted in the middle of a window: killed, rolled back, on fewer ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.health import models
from control_plane.api.messages import Report
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.commands import Command
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from tests.ray_jobs.trials.trials import open_server

SAMPLES, GLOBAL_BATCH, STEPS = 16_000, 32, 200
SAVE_EVERY, HOOK_STEPS = 85, 20
SAVED_AT, INTERRUPTED_AT = 170, 176
"""A checkpoint between two measurements of dead units, of which the second one confirms the first."""

FULL_FROM = 140
DIES_AT, SPIKES_AT = 155, 190
DRAIN_S = 60.0


class Operator:
    """Stands before the control server, and sends a command when the checkpoint to go back to is there."""

    def __init__(self, server: ControlServer, back: dict[str, Any] | None) -> None:
        self._server, self._back = server, back

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def report(self, report: Report) -> Any:
        """Take a report of rank 0's, in the thread of its link."""
        answer = await self._server.report(report)
        if self._back is not None and any(saved.step == SAVED_AT for saved in report.checkpoints):
            await self._server.submit(Command.model_validate(self._back))
            self._back = None
        return answer


def train_each(rank: int, spec: dict[str, Any]) -> None:
    """Collective. Run trainings one after the other. Of each: root, `back` (a command that is sent when the checkpoint
    is there), `interrupted` (whether it fails on the way), `again` (whether it begins anew in these processes), and
    `full` (whether rank 1's memory is, until then)."""
    for one in spec["trainings"]:
        if _life(rank, one, one.get("interrupted", False)) == "broken" and one.get("again"):
            _life(rank, one, interrupted=False)


def _life(rank: int, spec: dict[str, Any], interrupted: bool) -> str:
    """One life of the control server, and all of the trainers in it. Returns how the last training ended."""
    files = RunFiles(Path(spec["root"]))
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    server = Operator(open_server(files, []), spec.get("back")) if rank == 0 else None
    while True:
        context.enter(
            context.RunContext(
                files=files,
                connect=lambda: server,  # type: ignore[arg-type,return-value]
                checkpoint_every_steps=SAVE_EVERY,
                key_file=files.root / "key",
                health=HealthSettings(hook_steps=HOOK_STEPS),
            )
        )
        try:
            _script(rank, spec, interrupted)
            return "ended"
        except LeaveForBranch:
            continue
        except InterruptedError:
            dist.barrier()
            return "broken"
        finally:
            context.enter(None)
            forget_training()


def _script(rank: int, spec: dict[str, Any], interrupted: bool) -> None:
    """Train as a user's script would, with DeepSpeed, on the same global batch for any number of ranks."""
    import deepspeed

    torch.manual_seed(3)
    ranks = dist.get_world_size()
    order = SampleOrder(SAMPLES, 3, GLOBAL_BATCH)
    inputs, wanted = next(models.points(3, 0, SAMPLES, models.centres(3)))
    engine, *_ = deepspeed.initialize(model=models.Classifier(), config=_config(GLOBAL_BATCH // ranks))
    faults = Faults(engine.module)
    session = TrainingSession(engine=engine, total_steps=STEPS, sample_order=order)
    with session:
        for made in session.steps():
            step, share = made + 1, GLOBAL_BATCH // ranks
            own = torch.from_numpy(session.samples())[rank * share : (rank + 1) * share]
            faults.at(step)
            loss = models.loss_of(engine, (inputs[own], wanted[own]))
            engine.backward(loss * faults.gradient_factor(step))
            engine.step()
            session.step({"loss": loss.detach()})
            assert session._steering is not None
            if spec.get("full") and rank == 1 and step == FULL_FROM:
                assert session._steering.health is not None
                session._steering.health.signs._memory.limit_bytes = 1.0
            session._steering.saver.writer.drain(DRAIN_S)  # which checkpoints there are is not a matter of time
            if interrupted and step == INTERRUPTED_AT:
                raise InterruptedError("as planned")


class Faults:
    """Faults by steps alone, so that they are the same on any number of ranks and in every repetition."""

    def __init__(self, model: nn.Module) -> None:
        self._step = 0
        model.get_submodule("blocks.1.up").register_forward_hook(self._kill)

    def at(self, step: int) -> None:
        """Note the step that is made."""
        self._step = step

    def _kill(self, module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor | None:
        return output - 1000.0 if self._step >= DIES_AT else None

    def gradient_factor(self, step: int) -> float:
        """Return the factor of the gradients, whose norm before clipping is a sign."""
        return 1e4 if step in (SPIKES_AT, SPIKES_AT + 1) else 1.0


def _config(micro_batch: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01, "torch_adam": True}},
        "zero_optimization": {"stage": 1, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
