"""Trainings with bad samples in their data, whose config may have reflexes: a script's own loop on each rank."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.health import models
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.records import Parent, RunCreated
from control_plane.core.rules.branch_rules import Origin
from control_plane.core.rules.replay_plan import recorded
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.transfer import read_origin, write_origin
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from tests.ray_jobs.trials.loop_trials import Operator

SAMPLES, GLOBAL_BATCH = 19_200, 32
"""More than the training takes, with what is skipped: a second epoch would meet the bad samples again."""

STEPS, BAD_AT, BAD_STEPS = 360, 221, 3
SAVE_EVERY, DIGEST_EVERY = 40, 20
RATE = 3e-3


def train_each(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Collective. Run the trainings one after the other. Of each: seed, `bad` (nan, spike or none), reflexes, `replays`
    (name of the run to replay)."""
    return [_survive(rank, training, Path(spec["root"])) for training in spec["trainings"]]


# --- With an engine of DeepSpeed's, whose clipping is a knob ---

FAULT_AT, CLIP_STEPS, SHORT_STEPS = 90, 20, 130


def fault_each(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Collective. Run short trainings one after the other, each with a fault at one step. Of each: name, `fault`
    (spike or nan), reflexes. Returns of each the clipping that was in force at every step, and the steps made."""
    return [_fault(rank, training, Path(spec["root"])) for training in spec["trainings"]]


def _fault(rank: int, spec: dict[str, Any], root: Path) -> dict[str, Any]:
    import deepspeed

    files = RunFiles(root / "runs" / spec["name"])
    server = None
    if rank == 0:
        files.root.mkdir(parents=True)
        given = {"run": files.run, "name": files.run, "author": "test", "config_sha256": "0" * 64}
        created = RunCreated.model_validate(given | {"reflexes": spec["reflexes"]})
        server = Operator(ControlServer(created, writer.Journal.open(files.journal), MetricsStore(files.metrics)))
    dist.barrier()
    connect: Any = lambda: server  # noqa: E731
    context.enter(context.RunContext(files=files, connect=connect, key_file=root / "key", health=HealthSettings()))
    torch.manual_seed(1)
    batches = models.points(1, rank, GLOBAL_BATCH // dist.get_world_size(), models.centres(1))
    engine, *_ = deepspeed.initialize(model=models.Classifier(), config=spec["deepspeed"])
    clipping = {}
    try:
        with TrainingSession(engine=engine, total_steps=SHORT_STEPS) as session:
            for made in session.steps():
                inputs, wanted = next(batches)
                is_bad = made + 1 == FAULT_AT
                loss = models.loss_of(
                    engine, (inputs * float("nan") if is_bad and spec["fault"] == "nan" else inputs, wanted)
                )
                clipping[made + 1] = float(engine.optimizer.clip_grad)
                engine.backward(loss * (1e4 if is_bad and spec["fault"] == "spike" else 1.0))
                engine.step()
                session.step({"loss": loss.detach()})
    finally:
        context.enter(None)
    return {"clipping": clipping, "steps": session.global_step, "resumed": server.resumed if server else 0}


def _survive(rank: int, spec: dict[str, Any], root: Path) -> dict[str, Any]:
    files = RunFiles(root / "runs" / spec["name"])
    server = None
    if rank == 0:
        files.root.mkdir(parents=True)
        if spec.get("replays"):
            schedule = recorded(writer.read(RunFiles(root / "runs" / spec["replays"]).journal))
            write_origin(files, Origin(parent=Parent(kind="replay", run=spec["replays"]), scheduled=schedule))
        given = {"run": files.run, "name": files.run, "author": "test", "config_sha256": "0" * 64}
        created = RunCreated.model_validate(given | {"reflexes": spec.get("reflexes", {})})
        journal = writer.Journal.open(files.journal)
        server = ControlServer(created, journal, MetricsStore(files.metrics), origin=read_origin(files))
    dist.barrier()
    lives = 1
    while True:
        context.enter(
            context.RunContext(
                files=files,
                connect=lambda: server,  # type: ignore[arg-type,return-value]
                checkpoint_every_steps=SAVE_EVERY,
                digest_every_steps=DIGEST_EVERY,
                key_file=root / "key",
                health=HealthSettings(),
            )
        )
        try:
            return {"loss": _script(rank, spec), "lives": lives}
        except LeaveForBranch:
            lives += 1
        finally:
            context.enter(None)
            forget_training()


def _script(rank: int, spec: dict[str, Any]) -> float:
    """Train as a user's script would, and return the loss on held-out samples."""
    torch.manual_seed(spec["seed"])
    model = models.Classifier()
    order = SampleOrder(SAMPLES, spec["seed"], GLOBAL_BATCH)
    centres = models.centres(1)
    inputs, wanted = next(models.points(1, 0, SAMPLES, centres))
    held_out = next(models.points(2, 0, 2048, centres))
    _spoil(inputs, wanted, order, spec.get("bad"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    session = TrainingSession(model, optimizer, total_steps=STEPS, sample_order=order)
    share = GLOBAL_BATCH // dist.get_world_size()
    with session:
        for _ in session.steps():
            assert session._steering is not None
            session._steering.saver.writer.drain(60)  # which checkpoints there are is not a matter of time
            own = torch.from_numpy(session.samples())[rank * share : (rank + 1) * share]
            loss = models.loss_of(model, (inputs[own], wanted[own]))
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1e6)
            optimizer.step()
            session.step({"loss": loss.detach(), "grad_norm": norm})
    model.eval()
    with torch.no_grad():
        return float(models.loss_of(model, held_out))


def _spoil(inputs: torch.Tensor, wanted: torch.Tensor, order: SampleOrder, how: str | None) -> None:
    """Make the samples bad that are due at a few steps."""
    for step in range(BAD_AT, BAD_AT + BAD_STEPS):
        ids = torch.from_numpy(order.batch(step))
        if how == "nan":
            inputs[ids] = float("nan")
        if how == "spike":
            inputs[ids] *= 1000.0
            wanted[ids] = wanted[ids].roll(1, 0)
