"""What the ranks of the vocabulary's matrix run: steered trainings, and stock ones in which the same is done by hand.

The reference is Transformers' own Trainer, with no callback of Steerway's around it. What is set by hand is set as a
person would who edits the training script: with attributes, with torch, and with DeepSpeed's public functions.
"""

import gc
import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from control_plane.storage.layout import RunFiles
from ray_jobs.process import context
from tests.ray_jobs.support import vocabulary as v
from tests.ray_jobs.trials.knob_trials import ByHand, optimizer_of
from tests.ray_jobs.trials.loop_trials import Operator
from tests.ray_jobs.trials.parameter_trials import link_moments, live
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, deepspeed_config, open_server

MOMENTS = ("exp_avg", "exp_avg_sq")


class Weighted(Trainer):
    """A script's own Trainer, whose loss has a weight that can be changed while it learns."""

    loss_weight = 1.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        if isinstance(found, tuple):  # an evaluation
            return found
        return found * self.loss_weight

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Noted here: an evaluation by command does not call the script's own callbacks."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        vars(self).setdefault("evaluated", {})[self.state.global_step] = metrics["eval_loss"]
        return metrics

    def scale_loss(self, by: float) -> dict[str, float]:
        self.loss_weight *= by
        return {"weight": self.loss_weight}


def weights(trainer: Any) -> str:
    """Collective. One digest of all weights in the live model."""
    seen = [f"{name} {live(one)}" for name, one in sorted(trainer.model.named_parameters())]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


OFFERED_WITHIN_S = 60.0


class Patience(TrainerCallback):
    """Before the first step, rank 0 waits until the commands have been offered: training would not wait for them, and
    on a busy machine its first steps are faster than they are."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        link, begun_s = self.trainer._steering.opened().link, time.monotonic()
        while state.global_step == 0 and link is not None and not link.offers():
            assert time.monotonic() - begun_s < OFFERED_WITHIN_S, "no command was offered"
            time.sleep(0.01)


class MatrixWitness(TrainerCallback):
    """On each rank: the weights after every step, when all that belongs to it was over, and what happened when."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.weights: dict[int, str] = {}
        self.rates: dict[int, list[float]] = {}
        self.logged: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights(self.trainer)
        self.rates[state.global_step + 1] = [float(group["lr"]) for group in optimizer_of(self.trainer).param_groups]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights(self.trainer)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logged.append(state.global_step)


class Hand(ByHand):
    """Does by hand, in a stock training, what a command does in a steered one."""

    def __init__(self, trainer: Any, given: list[list[Any]]) -> None:
        super().__init__(trainer, [])
        self.given = given
        self.rate: Callable[[int, int, float], float] | None = None
        self.scheduled: dict[int, list[float]] = {}
        self.still: dict[str, dict[str, torch.Tensor]] = {}
        self.hooks: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Here every group holds what its schedule has said: these schedules do not look at what they find."""
        groups, step = optimizer_of(self.trainer).param_groups, state.global_step + 1
        self.scheduled[step] = [float(group["lr"]) for group in groups]
        if self.rate is not None:
            for index, group in enumerate(groups):
                group["lr"] = self.rate(step, index, group["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, kept in self.still.items():
            put(self.trainer, name, kept)
        for step, name in self.given:
            if step == state.global_step:
                getattr(self, name)()

    # The learning rate

    def _keep(self, first: Callable[[float], float], groups: tuple[int, ...] = (0, 1)) -> None:
        def rate(step: int, index: int, scheduled: float) -> float:
            begun = self.scheduled[v.AT + 1][index]
            if index not in groups:
                return scheduled
            return first(begun) if step == v.AT + 1 else scheduled * (first(begun) / begun)

        self.rate = rate

    def rate_value(self) -> None:
        self._keep(lambda begun: v.RATE)

    def rate_factor(self) -> None:
        self._keep(lambda begun: begun * v.FACTOR)

    def rate_group(self) -> None:
        self._keep(lambda begun: v.RATE, groups=(0,))

    def rate_hold(self) -> None:
        self.rate = lambda step, index, scheduled: v.RATE

    def _course(self, at: Callable[[int, float], float]) -> None:
        self.rate = lambda step, index, scheduled: at(step - v.AT - 1, self.scheduled[v.AT + 1][index])

    def course_constant(self) -> None:
        self._course(lambda past, begun: begun)

    def course_linear(self) -> None:
        def at(past: int, begun: float) -> float:
            last = begun * v.END
            return last if past >= v.OVER else last + (begun - last) * (1 - past / v.OVER)

        self._course(at)

    def course_cosine(self) -> None:
        def at(past: int, begun: float) -> float:
            top = begun * v.PEAK
            if past < v.WARMUP:
                return begun + (top - begun) * (past / v.WARMUP)
            turned, last = math.cos(math.pi * (past - v.WARMUP) / v.OVER), top * v.END
            return last + (top - last) * ((1 + turned) / 2)

        self._course(at)

    # Knobs; those that are not here are `ByHand`'s

    def decay_factor(self) -> None:
        optimizer_of(self.trainer).param_groups[0]["weight_decay"] *= v.DECAY_FACTOR

    def momentum(self) -> None:
        for group in optimizer_of(self.trainer).param_groups:
            group["momentum"] = v.MOMENTUM

    def attention_dropout(self) -> None:
        attention = self.trainer.model.transformer.h[0].attn
        attention.attn_dropout.p = attention.resid_dropout.p = v.ATTENTION_DROPOUT

    def norm_eps(self) -> None:
        block = self.trainer.model.transformer.h[0]
        block.ln_1.eps = block.ln_2.eps = v.NORM_EPS

    def loss_weight(self) -> None:
        self.trainer.loss_weight = v.LOSS_WEIGHT

    def scale_loss(self) -> None:
        self.trainer.loss_weight = v.LOSS_FACTOR

    def eval_steps(self) -> None:
        self.trainer.state.eval_steps = v.EVAL_STEPS

    def total_steps(self) -> None:
        self.trainer.state.max_steps = v.LONGER

    def evaluate(self) -> None:
        with torch.random.fork_rng(devices=[]):
            self.trainer.evaluate()
        self.trainer.control.should_log = True  # as every step is; an evaluation crosses it out

    # Parameters

    def freeze(self) -> None:
        for name, parameter in self.trainer.model.named_parameters():
            if name.startswith(v.MODULE):
                self.hooks.append(parameter.register_hook(lambda gradient: gradient * 0))
                self.still[name] = held(self.trainer, name)

    def unfreeze(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.still = {}

    def reset(self) -> None:
        from tests.ray_jobs.steering.test_parameters import expected_weights

        for name, fresh in expected_weights().items():
            moments = {key: torch.zeros_like(fresh) for key in held(self.trainer, name) if key != "weights"}
            put(self.trainer, name, moments | {"weights": fresh})


def held(trainer: Any, name: str) -> dict[str, torch.Tensor]:
    """Collective. A parameter's master weights and its moments, in full, by DeepSpeed's public functions."""
    parameter, engine = trainer.model.get_parameter(name), trainer.deepspeed
    if engine is None or not engine.zero_optimization():
        state = optimizer_of(trainer).state[parameter]
        found = {key: value for key, value in state.items() if torch.is_tensor(value) and value.dim() > 0}
        return {key: value.clone() for key, value in found.items()} | {"weights": parameter.detach().clone()}
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    link_moments(engine.optimizer)
    keys = MOMENTS if "betas" in engine.optimizer.param_groups[0] else ("momentum_buffer",)
    found = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
    return {key: value.clone() for key, value in found.items()} | {
        "weights": safe_get_full_fp32_param(parameter).clone()
    }


def put(trainer: Any, name: str, values: dict[str, torch.Tensor]) -> None:
    """Collective. The reverse."""
    parameter, engine = trainer.model.get_parameter(name), trainer.deepspeed
    if engine is None or not engine.zero_optimization():
        with torch.no_grad():
            for key, value in values.items():
                (parameter if key == "weights" else optimizer_of(trainer).state[parameter][key]).copy_(value)
        return
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    link_moments(engine.optimizer)
    for key, value in values.items():
        if key == "weights":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
    with torch.no_grad():
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(values["weights"])
        else:
            parameter.data.copy_(values["weights"])


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One training; `spec`: root, stage, optimizer, scheduler; then `commands` and `while_paused`, or `by_hand`."""
    from accelerate.state import AcceleratorState

    from ray_jobs.hf.trainer import make_interactive

    AcceleratorState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # the training before this one may have set it
    files, steered, server = RunFiles(Path(spec["root"])), "commands" in spec, None
    if steered:
        if rank == 0:
            files.root.mkdir(parents=True, exist_ok=True)
            server = Operator(open_server(files, spec["commands"]), tuple(spec["while_paused"]))
        context.enter(context.RunContext(files=files, connect=lambda: server))  # type: ignore[arg-type,return-value]
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    trainer = (make_interactive(Weighted) if steered else Weighted)(
        model=GPT2LMHeadModel(shape), args=_arguments(files, spec), train_dataset=Blocks(256), eval_dataset=Blocks(4)
    )
    if steered:
        _extend(trainer)
        trainer.add_callback(Patience(trainer))
    else:
        trainer.add_callback(Hand(trainer, spec["by_hand"]))
    witness = MatrixWitness(trainer)
    trainer.add_callback(witness)
    trainer.train()
    context.enter(None)
    seen = {"weights": witness.weights, "rates": witness.rates, "logged": witness.logged}
    seen |= {"evaluated": vars(trainer).get("evaluated", {}), "step": trainer.state.global_step}
    seen["heard_paused"] = server is not None and server.resumed > 0
    witness.trainer = None
    del trainer
    gc.collect()
    return seen


def _extend(trainer: Any) -> None:
    def set_weight(value: float) -> None:
        trainer.loss_weight = value

    trainer.register_knob("loss/weight", get=lambda: trainer.loss_weight, set=set_weight, least=0.0)
    trainer.action("scale_loss")(trainer.scale_loss)


def _arguments(files: RunFiles, spec: dict[str, Any]) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=v.STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="inverse_sqrt",  # falls, does not reach zero, and does not depend on the number of steps
        warmup_steps=2,
        weight_decay=0.1,
        train_sampling_strategy="sequential",  # of a random order Steerway has one of its own
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=spec["stage"] is None,
        deepspeed=_deepspeed(spec) if spec["stage"] is not None else None,
    )


def _deepspeed(spec: dict[str, Any]) -> dict[str, Any]:
    config = deepspeed_config(
        spec["stage"], spec["scheduler"], "hf" if spec["optimizer"] == "sgd" else spec["optimizer"]
    )
    if spec["optimizer"] == "sgd":
        config["optimizer"] = {"type": "SGD", "params": {"lr": "auto", "weight_decay": "auto", "momentum": 0.9}}
    return config


def train_each(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Several trainings one after the other in the same processes: importing everything costs more than training."""
    seen = []
    for one in spec["trainings"]:
        seen.append(train(rank, one))
        print(one["root"], flush=True)
        dist.barrier()
    return seen
