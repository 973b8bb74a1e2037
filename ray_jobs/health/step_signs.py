"""Local signs of one rank: noted in a step, closed at its boundary, read one boundary later.

signs.begin()                          a step may begin: the boundary before it is over
signs.add_loss(loss), note(...)        in the step
signs.step_over()                      the optimizer has stepped; logging and evaluation may follow
closed = signs.close(step)             at the boundary; values on a device are on their way
closed.values()                        at the next boundary, without a wait
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch

from control_plane.core.health.signs import PHASES
from ray_jobs.health.device_values import HostCopy, LossSum
from ray_jobs.health.forward_clock import ForwardClock, ForwardTimes
from ray_jobs.health.memory import RankMemory
from ray_jobs.health.source_losses import SourceLosses, SourceSums
from ray_jobs.process import deepspeed_internals
from ray_jobs.process.plain_values import number
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.steering import skipped_steps

ZERO_3 = 3
HELD_OUT = "heldout_"
"""Evaluation sets whose name begins so hold older data: their loss tells of forgetting."""


@dataclass(frozen=True, slots=True)
class ClosedStep:
    """Signs of one step of this rank, as far as they are known; the rest is on its way from the device."""

    step: int
    plain: dict[str, float]
    copies: dict[str, HostCopy] = field(default_factory=dict)
    forward: ForwardTimes | None = None
    sums: HostCopy | None = None
    sources: SourceSums | None = None

    def values(self) -> dict[str, float]:
        """Return every sign by its name in the catalogue, and `tokens`."""
        signs = self.plain | {name: copy.values()[0] for name, copy in self.copies.items()}
        own_s = self.forward.seconds() if self.forward is not None else None
        if own_s is not None:
            signs["own_step_s"] = signs.get("data_wait_s", 0.0) + own_s
        elif "data_wait_s" in signs:
            signs["own_step_s"] = signs["data_wait_s"]
        return signs


class StepSigns:
    """Local signs of this rank. Nothing here waits for a device, and nothing is a collective."""

    def __init__(self, training: LiveTraining, is_first_rank: bool = True) -> None:
        self._training = training
        self.sources = SourceLosses(training, is_first_rank)
        engine = training.engine
        stage = engine.zero_optimization_stage() if engine is not None else 0
        self.clock = ForwardClock(training.device, stage < ZERO_3)
        self._memory = RankMemory(training.device)
        self._loss = LossSum()
        self._given: dict[str, HostCopy | float] = {}
        self._evaluated: dict[str, float] = {}
        # Whether the loop has told the gradient norm of the last step: then nobody else needs to measure it.
        self.is_norm_given = False
        self._measured_norm: torch.Tensor | None = None
        self._rate = 0.0
        self._data_wait_s: float | None = None
        self._began_s = self._over_s = time.perf_counter()
        self._phases_s: dict[str, float] = {}
        # The first step of a process also fills caches and compiles: its times say nothing of the others.
        self._is_first = True
        self._skipped = 0

    def begin(self) -> None:
        """Note that the boundary before the coming step is over."""
        self._began_s = self._over_s = time.perf_counter()

    def note_rate(self) -> None:
        """Note the learning rate that the coming step will use."""
        groups = self._training.groups()
        self._rate = float(groups[0]["lr"]) if groups else 0.0

    def waited_for_data(self, seconds: float) -> None:
        """Add time in which the step waited for its batches."""
        self._data_wait_s = (self._data_wait_s or 0.0) + seconds

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch, in the share that it has in the step's loss."""
        self._loss.add(loss)

    def note(self, name: str, value: object) -> None:
        """Note a sign of this step that the loop knows: `loss_local`, or `grad_norm` before clipping."""
        if isinstance(value, torch.Tensor):
            if value.numel() == 1:
                self._given[name] = HostCopy(value)
        elif (plain := number(value)) is not None:
            self._given[name] = float(plain)

    def end_of_loop(self, metrics: Mapping[str, object]) -> None:
        """Note what a script's own loop tells at the end of a step: `loss`, `grad_norm`, and evaluation losses."""
        self.step_over()
        for metric, sign in (("loss", "loss_local"), ("grad_norm", "grad_norm")):
            if metric in metrics:
                self.note(sign, metrics[metric])
        if any(name.startswith("eval_") for name in metrics):
            self.evaluated(metrics)

    def note_measured_norm(self, norm: torch.Tensor) -> None:
        """Note the norm that a hook has measured, for a loop that does not tell it."""
        self._measured_norm = norm

    def evaluated(self, metrics: Mapping[str, object]) -> None:
        """Note the losses of the script's own evaluations: `eval_loss`, `eval_NAME_loss`, `eval_heldout_NAME_loss`."""
        for name, value in metrics.items():
            sign, plain = evaluation_sign(name), number(value)
            if sign is not None and plain is not None:
                self._evaluated[sign] = float(plain)

    def step_over(self) -> None:
        """Note that the optimizer has stepped; only the first call of a step counts."""
        if self._over_s == self._began_s:
            self._over_s = time.perf_counter()

    def phase(self, name: str, seconds: float) -> None:
        """Note the time of a phase between the boundary and the step after it (`PHASES`)."""
        self._phases_s[name] = self._phases_s.get(name, 0.0) + seconds

    def close(self, step: int, sums: HostCopy | None) -> ClosedStep:
        """Return this step's signs, and begin anew. At the boundary after `step`, before its saves and commands."""
        self.step_over()
        if self._data_wait_s is None and self.clock.first_began_s is not None:
            self.waited_for_data(max(0.0, self.clock.first_began_s - self._began_s))
        forward = self.clock.take()
        signs = self._times() | self._memory_signs() | self._evaluated | self._schedule() | self._precision()
        if forward.tokens:
            signs["tokens"] = float(forward.tokens)
        copies = self._device_values(signs)
        of_sources = self.sources.take()
        closed = ClosedStep(step, signs, copies, None if self._is_first else forward, sums, of_sources)
        self._given, self._evaluated, self._data_wait_s, self._is_first = {}, {}, None, False
        return closed

    def _device_values(self, signs: dict[str, float]) -> dict[str, HostCopy]:
        """Put what is known into `signs`, and return what is on its way."""
        copies: dict[str, HostCopy] = {}
        if (loss := self._loss.take()) is not None:
            copies["loss_local"] = loss
        for name, value in self._given.items():
            if isinstance(value, HostCopy):
                copies[name] = value
            else:
                signs[name] = value
        self.is_norm_given = "grad_norm" in self._given
        norm = deepspeed_internals.gradient_norm(self._training.engine)
        if norm is None and not self.is_norm_given:
            norm = self._measured_norm
        self._measured_norm = None
        if isinstance(norm, torch.Tensor):
            copies["grad_norm"] = HostCopy(norm)
        elif norm is not None:
            signs["grad_norm"] = float(norm)
        return copies

    def _times(self) -> dict[str, float]:
        now_s, wait_s = time.perf_counter(), self._data_wait_s
        step_s = self._over_s - self._began_s
        self.phase("step", step_s - (wait_s or 0.0))
        self.phase("data", wait_s or 0.0)
        self.phase("evaluation", now_s - self._over_s)
        longest = max(PHASES, key=lambda name: self._phases_s.get(name, 0.0))
        signs = {"phase": float(PHASES.index(longest)), "phase_s": self._phases_s[longest]}
        self._phases_s = {}
        if self._is_first:
            return {}
        signs["step_s"] = step_s
        if wait_s is not None:
            signs["data_wait_s"] = wait_s
        return signs

    def _memory_signs(self) -> dict[str, float]:
        return {"memory_bytes": self._memory.used_bytes(), "memory_limit_bytes": self._memory.limit_bytes}

    def _schedule(self) -> dict[str, float]:
        clipping = number(self._training.knobs.value("gradient_clipping"))
        return {"lr": self._rate} | ({"max_grad_norm": float(clipping)} if clipping and isfinite(clipping) else {})

    def _precision(self) -> dict[str, float]:
        engine = self._training.engine
        if engine is None:
            self._skipped += skipped_steps.was_skipped(self._training)
            return {"skipped_steps": float(self._skipped)}
        signs = {"skipped_steps": float(skipped_steps.skipped_steps(self._training))}
        return signs | deepspeed_internals.loss_scale_signs(engine)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the counts."""
        return {"skipped": self._skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; an older one has no counts."""
        self._skipped = int(state.get("skipped", 0))


def evaluation_sign(metric: str) -> str | None:
    """Return the sign of an evaluation loss (`eval/NAME_loss`, `heldout/NAME_loss`), or None for any other metric."""
    if not metric.startswith("eval_") or not metric.endswith("loss"):
        return None
    own = metric.removeprefix("eval_").removesuffix("loss").rstrip("_")
    if own.startswith(HELD_OUT) and own != HELD_OUT:
        return f"heldout/{own.removeprefix(HELD_OUT)}_loss"
    return f"eval/{own or 'all'}_loss"
