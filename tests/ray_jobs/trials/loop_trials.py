"""What the ranks of a test of `TrainingSession` run: loops in plain PyTorch and with DeepSpeed, and what they saw."""

import argparse
import hashlib
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn

from control_plane.api.messages import Report
from control_plane.core.model.commands import Command
from control_plane.storage.layout import RunFiles
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from tests.ray_jobs.trials.trials import open_server

SAMPLES = 8
SAVE_EVERY_STEPS = 3
WAIT_S = 30.0


RESUME = {"author": "operator", "intent": {"kind": "resume"}}


class Operator:
    """Stands before the control server, and lets a paused run go on as soon as it is seen to be paused.

    `commands`, a resume among them, are what it sends then.
    """

    def __init__(self, server: Any, commands: tuple[dict[str, Any], ...] = (RESUME,)) -> None:
        self._server, self._commands, self.resumed = server, commands, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def report(self, report: Report) -> Any:
        answer = await self._server.report(report)
        if report.progress is not None and report.progress.phase == "paused" and not self.resumed:
            self.resumed += 1
            for command in self._commands:
                await self._server.submit(Command.model_validate({"uuid": str(uuid4())} | command))
        return answer


class Training:
    """A small net, its data, and what of them can be steered; the same for every way to drive it."""

    def __init__(self, rank: int, engine: bool, steps: int) -> None:
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        groups = [
            {"params": net[0].parameters(), "lr": 0.25, "name": "body"},
            {"params": net[3].parameters(), "lr": 0.125, "name": "head"},
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.5)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 64)
        self.rank, self.weight, self.seed, self.net, self.optimizer = rank, 1.0, 0, net, optimizer
        self.used: dict[int, list[float]] = {}
        self.engine: Any = _engine(net, optimizer, self.scheduler, stage=2) if engine else None
        torch.manual_seed(5 + rank)
        if engine:
            self.session = TrainingSession(engine=self.engine, total_steps=steps)
        else:
            self.session = TrainingSession(net, optimizer, scheduler=self.scheduler, total_steps=steps)
        self._register()

    def _register(self) -> None:
        session = self.session

        def set_weight(value: float) -> None:
            self.weight = value

        session.register_knob("loss/weight", get=lambda: self.weight, set=set_weight, least=0.0, most=8.0)
        session.register_knob("stuck", get=lambda: 1.0, set=lambda value: None)

        @session.action("reshuffle", description="other samples")
        def reshuffle(seed: int = 0) -> dict[str, int]:
            self.seed = session.state["seed"] = seed
            return {"seed": seed}

    @property
    def groups(self) -> list[dict[str, Any]]:
        return list((self.engine.optimizer if self.engine is not None else self.optimizer).param_groups)

    def train(self, at_step: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
        """Train to the end. `at_step` is called after each step with the number of steps made."""
        began_at = None
        with self.session as session:
            self.seed = session.state.get("seed", self.seed)
            for step in session.steps():
                began_at = step if began_at is None else began_at
                self.used[step + 1] = [float(group["lr"]) for group in self.groups]
                loss = self._step(step)
                session.step({"loss": loss})
                at_step(step + 1)
        return {
            "began_at": began_at,
            "step": session.global_step,
            "used": self.used,
            "weights": self.digest(),
            "weight": self.weight,
            "seed": self.seed,
        }

    def _step(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + 10 * step + self.rank)
        samples = torch.randn(SAMPLES, 4, generator=generator)
        model = self.engine if self.engine is not None else self.net
        loss = self.weight * (model(samples) - samples.sum(1, keepdim=True)).square().mean()
        if self.engine is not None:
            self.engine.backward(loss)
            self.engine.step()
            return loss.detach()
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.net.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def digest(self) -> str:
        return _digest([tensor.detach() for tensor in self.net.state_dict().values()])


def _engine(net: nn.Module, optimizer: Any, scheduler: Any, stage: int, bits: int = 32) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": SAMPLES,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "bf16": {"enabled": bits == 16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    return engine


def _enter(files: RunFiles, server: Any, every_steps: int = 0) -> None:
    run = context.RunContext(
        files=files, connect=lambda: server, checkpoint_every_steps=every_steps, digest_every_steps=1
    )
    context.enter(run)


def _serve(rank: int, root: str, commands: list[dict[str, Any]]) -> tuple[RunFiles, Any]:
    files = RunFiles(Path(root))
    if rank == 0:
        files.root.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    return files, open_server(files, commands) if rank == 0 else None


def steered(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One steered training to its end."""
    files, server = _serve(rank, spec["root"], spec["commands"])
    _enter(files, Operator(server) if server is not None else None)
    try:
        return Training(rank, spec["engine"], spec["steps"]).train()
    finally:
        context.enter(None)


def by_hand(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """The same training with nobody to steer it; the script does by itself what the commands asked for."""
    training = Training(rank, spec["engine"], spec["steps"])

    def at_step(step: int) -> None:
        if step == spec["rate_at"]:
            training.scheduler.base_lrs[1] *= 0.5
            training.groups[1]["lr"] *= 0.5
        if step == spec["weight_at"]:
            training.weight = 2.0
        if step == spec["action_at"]:
            training.seed = 3

    return training.train(at_step)


def lost_and_restored(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A training that fails after a checkpoint, and the one that goes on from there."""
    files, server = _serve(rank, spec["root"], spec["commands"])
    _enter(files, server, SAVE_EVERY_STEPS)

    def fail(step: int) -> None:
        if step == spec["fail_at"]:
            raise ZeroDivisionError("as planned")
        _wait_for_saves(files, step)

    try:
        failed = Training(rank, spec["engine"], spec["steps"])
        try:
            failed.train(fail)
        except ZeroDivisionError:
            dist.barrier()
        _enter(files, server, SAVE_EVERY_STEPS)  # the script begins anew
        return [Training(rank, spec["engine"], spec["steps"]).train()]
    finally:
        context.enter(None)


def _wait_for_saves(files: RunFiles, step: int) -> None:
    """Until everything that was begun is a checkpoint, on every rank: then it is known what there is to restore."""
    began_s = time.monotonic()
    while len(list(files.checkpoints.glob("*/manifest.json"))) < step // SAVE_EVERY_STEPS:
        assert time.monotonic() - began_s < WAIT_S, "the checkpoint was not written"
        time.sleep(0.02)
    dist.barrier()


def with_a_trainer(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """A Trainer with a knob and an action of the script's own."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

    from ray_jobs.hf.trainer import InteractiveTrainer
    from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks

    files, server = _serve(rank, spec["root"], spec["commands"])
    _enter(files, server)
    set_seed(5)
    own = {"weight": 1.0, "calls": 0}
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=spec["steps"],
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    trainer: Any = InteractiveTrainer(model=GPT2LMHeadModel(shape), args=args, train_dataset=Blocks(64))
    trainer.register_knob("loss/weight", get=lambda: own["weight"], set=lambda value: own.update(weight=value))

    @trainer.action("count")
    def count(by: int) -> int:
        own["calls"] += by
        return int(own["calls"])

    trainer.train()
    context.enter(None)
    return own


def skipping(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """A loop in 16 bits, in which DeepSpeed skips a step on all ranks: the gradient of one is not finite in it."""
    files, server = _serve(rank, spec["root"], spec["commands"])
    _enter(files, server)
    torch.manual_seed(5)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.5)
    halving = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    engine = _engine(net, optimizer, halving if spec["scheduler"] else None, spec["stage"], bits=16)
    inputs = torch.ones(SAMPLES, 4, dtype=torch.bfloat16)
    rates, weights = {}, {}
    with TrainingSession(engine=engine, total_steps=spec["steps"]) as session:
        for step in session.steps():
            rates[step + 1] = engine.optimizer.param_groups[0]["lr"]
            overflows = rank == 1 and step + 1 == spec["skip_at"]
            engine.backward(engine(inputs).float().square().mean() * (float("inf") if overflows else 1.0))
            engine.step()
            weights[step + 1] = net.weight.detach().float().tolist()
            session.step({"loss": 1.0})
    context.enter(None)
    return {"rates": rates, "weights": weights, "step": session.global_step}


def shipped(rank: int, spec: dict[str, Any]) -> None:
    """A script that is shipped with a config, as it is."""
    files, server = _serve(rank, spec["root"], spec["commands"])
    _enter(files, server)
    arguments, sys.argv = sys.argv, [spec["script"], *spec["arguments"]]
    try:
        importlib.import_module(f"ray_jobs.workloads.{spec['script']}").main()
    finally:
        sys.argv = arguments
        context.enter(None)


class ByHand:
    """A session whose script changes something by itself, after a step."""

    def __init__(self, session: TrainingSession, at_step: int, change: Callable[[], None]) -> None:
        self._session, self._at_step, self._change = session, at_step, change

    def steps(self) -> Any:
        return self._session.steps()

    def step(self, metrics: dict[str, Any]) -> None:
        self._session.step(metrics)
        if self._session.global_step == self._at_step:
            self._change()


def _in_a_run(rank: int, spec: dict[str, Any]) -> None:
    """With commands there is a run around the loop; without any it is a plain loop."""
    if "root" in spec:
        files, server = _serve(rank, spec["root"], spec["commands"])
        _enter(files, server)


def shipped_layers(rank: int, spec: dict[str, Any]) -> dict[str, str]:
    """The shipped DeepSpeed loop on a small text: what became of each parameter group."""
    from ray_jobs.workloads import layerwise_lr

    _in_a_run(rank, spec)
    arguments = argparse.Namespace(samples=4, layers=2, rate=2e-3, decay=0.7, seed=7, steps=spec["steps"])
    torch.manual_seed(7)
    engine = layerwise_lr.build_engine(arguments, dist.get_world_size())
    torch.manual_seed(7 + rank)
    session: Any = TrainingSession(engine=engine, total_steps=spec["steps"])
    groups = engine.optimizer.param_groups
    names = [group["name"] for group in groups]

    def halve() -> None:
        groups[names.index("layer0")]["lr"] *= 0.5

    with session:
        loop = ByHand(session, spec["by_hand_at"], halve) if "by_hand_at" in spec else session
        layerwise_lr.train(engine, torch.arange(5000) % 251, loop, arguments)
    context.enter(None)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name, parameter in engine.module.named_parameters():
        parts[layerwise_lr.group_of(name)].append(parameter.detach())
    return {name: _digest(tensors) for name, tensors in parts.items()}


def shipped_game(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """The shipped game: what became of the policy, and what the games of each step were worth."""
    from ray_jobs.workloads import policy_gradient as game

    _in_a_run(rank, spec)
    torch.manual_seed(7)
    policy, optimizer = game.build_policy(3e-2)
    rewards, grid, worth = game.Rewards(), game.Grid(), []
    session: Any = game.make_session(policy, optimizer, rewards, grid, spec["steps"])
    torch.manual_seed(7 + rank)
    step = session.step

    def told(metrics: dict[str, Any]) -> None:
        worth.append(float(metrics["return"]))
        step(metrics)

    session.step = told

    def fear_walls() -> None:
        rewards.wall = -2.0

    with session:
        loop = ByHand(session, spec["by_hand_at"], fear_walls) if "by_hand_at" in spec else session
        game.learn(policy, optimizer, rewards, grid, loop, 8, 0.02)
    context.enter(None)
    return {"policy": _digest(list(policy.state_dict().values())), "worth": worth}


def _digest(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def everything(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Several trainings in the same processes: importing everything costs more than training."""
    trials: dict[str, Callable[[int, dict[str, Any]], Any]] = {
        "steered": steered,
        "by_hand": by_hand,
        "restored": lost_and_restored,
        "trainer": with_a_trainer,
        "skipping": skipping,
        "shipped": shipped,
        "layers": shipped_layers,
        "game": shipped_game,
    }
    return {name: trials[one["trial"]](rank, one) for name, one in spec["trainings"].items()}


def continued(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """A training without an engine, from where the run in `root` is."""
    files, server = _serve(rank, spec["root"], [])
    _enter(files, server)
    try:
        return Training(rank, False, spec["steps"]).train()
    finally:
        context.enter(None)
