"""Measuring stages of the GPU check: step time, a profiler trace, saves beside stock, digests."""

import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from benchmarks.checkpoints import checkpoint_rank
from benchmarks.gpu.steered import RandomTokens, Setting, Training, steer
from benchmarks.harness.training import forget_trainer
from benchmarks.step_cost.boundary_rank import WARM_UP, Alternation, quiet_session
from ray_jobs.digest import state as digests
from ray_jobs.hf.trainer import steering_of

BOUNDARY = "steerway.boundary"
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA runtime calls that hold the calling thread until the device is done. `cudaMemcpyAsync` is not among them."""

ARMS = ("none", "prefetched")
RESAMPLES = 2000
DIGEST_STEPS = range(4, 8)
GPT2_124M: dict[str, Any] = {"layers": 12, "width": 768, "vocabulary": 50257, "block": 512, "batch": 4}


@dataclass(frozen=True)
class Span:
    """Event of a trace, on one thread. Times in microseconds."""

    name: str
    thread: int
    began_us: float
    ended_us: float


def step_time(setting: Setting) -> dict[str, Any]:
    """Measure the step time of a 124M GPT-2 in bf16 with the step boundary and without it, in alternating blocks."""
    rounds, block_steps = (3, 3) if setting.rehearse else (12, 8)
    plan = [(WARM_UP, "prefetched")] * (3 if setting.rehearse else 10)
    for number in range(rounds):
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            plan += [(number, arm)] * block_steps
    training = Training("step-time", steps=len(plan), stage=1, **({} if setting.rehearse else GPT2_124M))
    session = quiet_session(setting.rank, len(plan))
    alternation = Alternation(session, plan)
    _train_plainly(setting, training, alternation)
    if session.link is not None:
        session.link.close("finished", len(plan), None)
    means = {
        arm: [
            statistics.fmean(step_us for number, at, _, step_us in alternation.seen if (number, at) == (this, arm))
            for this in range(rounds)
        ]
        for arm in ARMS
    }
    ratios = [steered / plain for plain, steered in zip(means["none"], means["prefetched"], strict=True)]
    low, high = interval(ratios)
    return {
        "checks": {},
        "plain_step_ms": round(statistics.median(means["none"]) / 1e3, 3),
        "steered_step_ms": round(statistics.median(means["prefetched"]) / 1e3, 3),
        "overhead": round(statistics.median(ratios) - 1, 5),
        "overhead_95": [round(low - 1, 5), round(high - 1, 5)],
        "rounds": rounds,
        "block_steps": block_steps,
    }


def trace(setting: Setting) -> dict[str, Any]:
    """Trace steered steps with the profiler: inside of the boundary no call may wait for the device."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setting.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        steer(setting, Training("trace", steps=8, stage=1, callbacks=(MarksBoundaries,)))
    spans = [
        Span(event.name, event.thread, event.time_range.start, event.time_range.end) for event in profiler.events()
    ]
    marked = [span for span in spans if span.name == BOUNDARY]
    waits = synchronisations(spans)
    return {
        "checks": {"boundaries were traced": len(marked) >= 8, "no boundary synchronised the device": not waits},
        "boundaries": len(marked),
        "synchronisations": [span.name for span in waits],
        "cuda_calls_traced": sum(span.name.startswith("cuda") for span in spans),
    }


def synchronisations(spans: Iterable[Span]) -> list[Span]:
    """Return the CUDA calls inside of a boundary, on its thread, that wait for the device."""
    spans = list(spans)
    marked = [span for span in spans if span.name == BOUNDARY]
    return [
        span
        for span in spans
        if span.name in SYNCHRONISING
        and any(
            span.thread == outer.thread and outer.began_us <= span.began_us and span.ended_us <= outer.ended_us
            for outer in marked
        )
    ]


class MarksBoundaries(TrainerCallback):
    """Callback that puts both halves of the boundary into named ranges of the profiler."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wrap the session's two calls; it exists from here on."""
        session = steering_of(self._trainer).opened()
        for name in ("begin_step", "end_step"):
            setattr(session, name, _marked(getattr(session, name)))


def _marked(call: Any) -> Any:
    def marked(step: int) -> None:
        with torch.profiler.record_function(BOUNDARY):
            call(step)

    return marked


def save(setting: Setting) -> dict[str, Any]:
    """Measure the stall of a step by a save of 1 and of 4 GB, beside `engine.save_checkpoint`, in turns."""
    sizes = [1 << 22, 1 << 24] if setting.rehearse else [1 << 30, 4 << 30]
    spec = {"folder": str(setting.folder / "save"), "rounds": 1, "sizes": sizes, "quiet_steps": 0}
    seen = checkpoint_rank.save(setting.rank, spec)
    rows = [
        {
            "state_bytes": size["state_bytes"],
            "ours_ms": [round(1e3 * taken, 2) for taken in size["ours"]],
            "stock_ms": [round(1e3 * taken, 2) for taken in size["stock"]],
        }
        for size in seen
    ]
    return {"checks": {"every size was saved": len(rows) == len(sizes)}, "saves": rows}


def digest(setting: Setting) -> dict[str, Any]:
    """Measure the milliseconds of a digest of the live state of a 124M GPT-2."""
    taken_ms: list[float] = []

    class Digests(TrainerCallback):
        def __init__(self, trainer: Trainer) -> None:
            self._trainer = trainer

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in DIGEST_STEPS:
                if setting.device == "cuda":
                    torch.cuda.synchronize()
                began_s = time.perf_counter()
                steering = steering_of(self._trainer)
                digests.take(steering.training, steering.opened())
                taken_ms.append(1e3 * (time.perf_counter() - began_s))

    size = {} if setting.rehearse else GPT2_124M
    steer(setting, Training("digest", steps=max(DIGEST_STEPS) + 2, callbacks=(Digests,), **size))
    return {
        "checks": {"digests were taken": len(taken_ms) == len(DIGEST_STEPS)},
        "digest_ms": [round(taken, 2) for taken in taken_ms],
    }


def build_fused_adam_s() -> float:
    """Return the seconds to build and load DeepSpeed's FusedAdam kernel; about 0 if it is in the cache of extensions.

    Raises the errors of the build, which needs nvcc.
    """
    from deepspeed.ops.op_builder import FusedAdamBuilder

    began_s = time.perf_counter()
    FusedAdamBuilder().load()
    return round(time.perf_counter() - began_s, 2)


def interval(values: list[float], share: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the median, by `RESAMPLES` resamples and the percentile method (Efron 1979)."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - share) / 2)
    return medians[cut], medians[-cut - 1]


def _train_plainly(setting: Setting, training: Training, callback: TrainerCallback) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    from benchmarks.gpu.steered import training_arguments

    set_seed(5)
    shape = GPT2Config(
        vocab_size=training.vocabulary,
        n_positions=training.block,
        n_embd=training.width,
        n_layer=training.layers,
        n_head=max(1, training.width // 64),
    )
    args = training_arguments(training, setting.folder / "step-time")
    trainer = Trainer(
        model=GPT2LMHeadModel(shape), args=args, train_dataset=RandomTokens(training), callbacks=[callback]
    )
    trainer.train()
    forget_trainer(trainer)
