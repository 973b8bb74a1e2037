"""Rank of the boundary benchmark: a real training whose boundary changes from block to block of steps.

    none           no boundary at all
    blocking       issued and awaited at the end of the step
    prefetched     issued at the start of the step, awaited at its end: what Steerway does
    synchronised   a barrier at the end of the step, then as blocking: no rank is late

All of them run in one process and one training, in turns, so that a drift of the machine affects them alike.
"""

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from benchmarks.harness.training import arguments, fresh_model, random_blocks, shipped_config
from control_plane.api.messages import Offer, Report
from control_plane.api.ports import TrainerPort
from control_plane.core.model.records import Ending, RankPlace
from control_plane.core.rules.decisions import GenerationStart
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.link import Link
from ray_jobs.rank.session import RankSession

VARIANTS = ("none", "blocking", "prefetched", "synchronised")
WARM_UP = -1
"""Round of the warm-up steps, which do not count."""

BARE_BROADCASTS = 300
TRAINING_BLOCKS = 2048


class QuietControl:
    """Fake control server without commands, so that only the link's thread runs beside the training."""

    async def start_generation(self, start: GenerationStart) -> int:
        """See `TrainerPort`."""
        return 1

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """See `TrainerPort`."""
        await asyncio.sleep(wait_s if seen_revision == 0 else 0)
        return Offer(commands=(), revision=0)

    async def report(self, report: Report) -> None:
        """See `TrainerPort`."""

    async def end_generation(self, generation: int, ending: Ending, step: int, reason: str | None) -> None:
        """See `TrainerPort`."""


@dataclass
class Alternation(TrainerCallback):
    """Callback that runs the boundary of each step by `plan`: (round, variant) by step. Times in microseconds."""

    session: RankSession
    plan: list[tuple[int, str]]
    seen: list[tuple[int, str, float, float]] = field(default_factory=list)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the time of the first step."""
        self._ended_ns = time.perf_counter_ns()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collective. Issue the boundary if it is prefetched."""
        self._round, self._variant = self.plan[state.global_step]
        begun_ns = time.perf_counter_ns()
        if self._variant == "prefetched":
            self.session.begin_step(state.global_step + 1)
        self._spent_ns = time.perf_counter_ns() - begun_ns

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collective. Await the boundary, or issue and await it; then record its time, and the step's."""
        if self._variant == "synchronised":
            self.session.collectives.barrier()
        begun_ns = time.perf_counter_ns()
        if self._variant != "none":
            self.session.end_step(state.global_step)
        now_ns = time.perf_counter_ns()
        self._spent_ns += now_ns - begun_ns
        step_ns, self._ended_ns = now_ns - self._ended_ns, now_ns
        self.seen.append((self._round, self._variant, self._spent_ns / 1e3, step_ns / 1e3))


def plan(rounds: int, block_steps: int, warm_up_steps: int) -> list[tuple[int, str]]:
    """Return the round and the variant of each step. Every other round is reversed, so that a steady drift cancels."""
    steps = [(WARM_UP, "prefetched")] * warm_up_steps
    for number in range(rounds):
        order = VARIANTS if number % 2 == 0 else VARIANTS[::-1]
        steps += [(number, variant) for variant in order for _ in range(block_steps)]
    return steps


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Train and return the times of steps and broadcasts. `spec`: rounds, block_steps, warm_up_steps, output_dir."""
    config = shipped_config()
    steps = plan(spec["rounds"], spec["block_steps"], spec["warm_up_steps"])
    session = quiet_session(rank, len(steps))
    alternation = Alternation(session, steps)
    trainer = Trainer(
        model=fresh_model(config),
        args=arguments(config, Path(spec["output_dir"]), len(steps)),
        train_dataset=random_blocks(config, TRAINING_BLOCKS),
        callbacks=[alternation],
    )
    trainer.train()
    bare_us = _bare_broadcasts_us(BARE_BROADCASTS)
    if session.link is not None:
        session.link.close("finished", len(steps), None)
    return {"steps": [step for step in alternation.seen if step[0] != WARM_UP], "bare_us": bare_us}


def quiet_session(rank: int, total_steps: int) -> RankSession:
    """Collective. Open a session of a run without commands."""
    link = Link(lambda: cast(TrainerPort, QuietControl())) if rank == 0 else None
    session = RankSession(Collectives(), link, total_steps=lambda: total_steps)
    place = RankPlace(rank=rank, node="local", pid=os.getpid(), device="cpu")
    session.start(place, 0, {}, {})
    return session


def _bare_broadcasts_us(times: int) -> list[float]:
    """Return the times of torch's own broadcasts of 8 bytes, right after a barrier."""
    group = dist.new_group(backend="gloo")
    header = torch.zeros(1, dtype=torch.int64)
    taken_us = []
    for _ in range(times):
        dist.barrier(group=group)
        begun_ns = time.perf_counter_ns()
        dist.broadcast(header, src=0, group=group)
        taken_us.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return taken_us
