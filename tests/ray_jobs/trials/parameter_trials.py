"""What the ranks of the tests of parameters run: a steered training with a witness that digests every parameter.

At each boundary every rank's witness digests each parameter in full: its fp32 weights, its moments, and the weights in
the live model. `weights[step]` is what it saw after that step, when the commands of the boundary had been settled.
"""

import hashlib
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from control_plane.core.model.commands import Command
from ray_jobs.checkpoint import loop_state
from ray_jobs.checkpoint.universal import consolidated
from ray_jobs.steering.freezing import FrozenParameters
from ray_jobs.steering.parameters import ResetApplier
from ray_jobs.steering.partitions import Partitions
from tests.ray_jobs.trials import trials


def intent(step: int, **intent: Any) -> dict[str, Any]:
    return {"uuid": str(uuid4()), "author": "test", "intent": intent, "not_before_step": step}


def hashed(tensor: torch.Tensor) -> str:
    # Gathering adds zeros from other ranks and loses the sign of a zero.
    return hashlib.sha256((tensor.detach().float().cpu() + 0.0).contiguous().numpy().tobytes()).hexdigest()[:16]


def digests(trainer: Any) -> dict[str, dict[str, str]]:
    """Collective. By parameter: digests of the whole weights, moments, and of the live weights."""
    engine = trainer.deepspeed if trainer.is_deepspeed_enabled else None
    if engine is not None:
        link_moments(engine.optimizer)
        states = dict(consolidated(engine))
    else:
        optimizer = trainer.optimizer.optimizer
        named = [(name, one, optimizer.state.get(one, {})) for name, one in trainer.model.named_parameters()]
        states = {name: {"fp32": one} | {k: v for k, v in state.items() if k != "step"} for name, one, state in named}
    seen = {name: {key: hashed(one) for key, one in state.items() if key != "step"} for name, state in states.items()}
    for name, one in trainer.model.named_parameters():
        seen[name]["live"] = live(one)
    return seen


def link_moments(zero: Any) -> None:
    """ZeRO 1 and 2 do that once, after the first group's first step, when other groups have no moments yet."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def live(parameter: Any) -> str:
    if not hasattr(parameter, "ds_id"):
        return hashed(parameter)
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return hashed(parameter)


class ParameterWitness(trials.Witness):
    """Also digests every parameter, and tries a reset and its undoing when the training is over."""

    witnesses: list["ParameterWitness"] = []

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.weights: dict[int, dict[str, dict[str, str]]] = {}
        self.norms: dict[int, float] = {}
        self.undone: dict[str, bool] = {}
        self.recalled: list[str] = []
        ParameterWitness.witnesses.append(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        self.weights[state.global_step] = digests(self.trainer)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if logs and "grad_norm" in logs:
            self.norms[state.global_step] = float(logs["grad_norm"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = self.weights[state.global_step] = digests(self.trainer)
        command = Command.model_validate(intent(0, kind="reset_parameters", modules="*", seed=1))
        training = self.trainer._steering.training
        applier, random = ResetApplier(training.partitions), torch.get_rng_state()
        refused = applier.check(command)
        applier.apply(command, state.global_step)
        between = digests(self.trainer)
        applier.undo(command)
        after = digests(self.trainer)
        drawn = [name for name in before if not name.endswith("bias") and ".ln_" not in name]
        self.undone = {
            "possible": refused is None,
            "all changed": all(between[name]["live"] != before[name]["live"] for name in drawn),
            "live is master": all(between[name]["live"] == between[name]["fp32"] for name in before),
            "restored": after == before,
            "random state kept": torch.equal(random, torch.get_rng_state()),
        }
        saved = loop_state.captured(training)
        training.frozen.hold(())
        loop_state.restore(training, saved)
        self.recalled = training.frozen.names
        self.trainer = None  # an engine less in memory

    def told(self) -> dict[str, Any]:
        return {"weights": self.weights, "norms": self.norms, "undone": self.undone, "recalled": self.recalled}


def train_each(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Trainings with a Trainer, then loops with an engine alone, all in the same processes."""
    trials.Witness = ParameterWitness  # type: ignore[misc]
    seen = trials.train_each(rank, spec)
    trainings = [one | more.told() for one, more in zip(seen, ParameterWitness.witnesses, strict=True)]
    return {"trainings": trainings, "engines": [steer_engine(rank, *arm) for arm in spec["engines"]]}


def steer_engine(rank: int, stage: int, bits: int) -> dict[str, Any]:
    """Two layers of odd sizes, so that shares are padded, and none small enough to stay in full on every rank."""
    import deepspeed

    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "weight_decay": 0.1, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": bits == 16},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    inputs = torch.full((1, 7), rank + 1.0, dtype=torch.bfloat16 if bits == 16 else torch.float32)

    def step() -> None:
        engine.backward(engine(inputs).float().square().sum())
        engine.step()

    step()
    trainer = SimpleNamespace(model=engine.module, deepspeed=engine, is_deepspeed_enabled=True)
    partitions = Partitions(engine.module, engine.optimizer, engine)
    command = Command.model_validate(intent(0, kind="reset_parameters", modules="1", seed=4))
    frozen, reset, seen = FrozenParameters(partitions), ResetApplier(partitions), {"begun": digests(trainer)}
    frozen.hold({"0.weight", "1.bias"})
    step()
    step()
    seen["frozen"] = digests(trainer)
    reset.apply(command, 3)
    seen["reset"] = digests(trainer)
    reset.undo(command)
    seen["undone"] = digests(trainer)
    reset.apply(command, 3)
    frozen.hold(())
    step()
    seen["trained on"] = digests(trainer)
    return seen
