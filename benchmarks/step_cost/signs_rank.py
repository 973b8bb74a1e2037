"""Rank of the signs benchmark: one steered training whose blocks of steps have other health signs switched on.

    off, again   no signs
    steps        every step's own signs and the gather
    layers       and the norms of groups of layers: the default without hooks
    hooks        and the hooks, at every step

All arms run in one process and one training, in turns, so that a drift of the machine affects them alike.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.harness.training import arguments, fresh_model, random_blocks, shipped_config
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.records import RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.health.rank_health import RankHealth
from ray_jobs.hf.trainer import InteractiveTrainer
from ray_jobs.process import context

ARMS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "steps": {"signs": {"layers": False, "hooks": False}},
    "layers": {"signs": {"hooks": False}},
    "hooks": {"hook_steps": 1},
    "again": None,
}
TRAINING_BLOCKS = 2048
IN_LINE = ("begin_step", "end_step")
"""Methods of the health of a rank whose time a step waits for."""


def plan(rounds: int) -> list[tuple[int, str]]:
    """Return the round and the arm of each block. Every other round is reversed, so that a steady drift cancels."""
    order = tuple(ARMS)
    return [(number, arm) for number in range(rounds) for arm in (order if number % 2 == 0 else order[::-1])]


def train(rank: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Train and return the times of the blocks. `spec`: rounds, block_steps, warm_up_steps, root."""
    config, files = shipped_config(), RunFiles(Path(spec["root"]))
    server = make_server(files) if rank == 0 else None
    connect: Any = lambda: server  # noqa: E731
    context.enter(context.RunContext(files, connect, key_file=files.root / "key", health=HealthSettings()))
    turns = plan(spec["rounds"])
    # One step more: a block ends where the next step begins.
    steps = spec["warm_up_steps"] + len(turns) * spec["block_steps"] + 1
    trainer = InteractiveTrainer(
        model=fresh_model(config),
        args=arguments(config, files.root / "trainer", steps),
        train_dataset=random_blocks(config, TRAINING_BLOCKS),
    )
    blocks = SignBlocks(trainer, turns, spec["block_steps"], spec["warm_up_steps"])
    trainer.callback_handler.callbacks.insert(0, blocks)
    trainer.train()
    return blocks.seen


def make_server(files: RunFiles) -> ControlServer:
    files.root.mkdir(parents=True, exist_ok=True)
    created = RunCreated(run=files.run, name=files.run, author="benchmark", config_sha256="0" * 64)
    return ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))


class SignBlocks(TrainerCallback):
    """Callback before all others that puts each block's health in place, and times the block."""

    def __init__(self, trainer: Any, turns: list[tuple[int, str]], block_steps: int, warm_up_steps: int) -> None:
        self._trainer, self._turns = trainer, turns
        self._block_steps, self._warm_up_steps = block_steps, warm_up_steps
        self._health: dict[str, RankHealth | None] = {}
        self._in_line_us = self._in_line_cpu_us = 0.0
        self._wall_s = self._cpu_s = 0.0
        self.seen: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start a block if it is due: the step before is over, including its boundary."""
        made = state.global_step - self._warm_up_steps
        if made < 0 or made % self._block_steps:
            return
        block, steering = made // self._block_steps, self._trainer._steering
        if block == 0:
            self._make(steering)
        else:
            wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
            number, arm = self._turns[block - 1]
            times = {"wall_s": wall_s, "cpu_s": cpu_s, "in_line_us": self._in_line_us / self._block_steps}
            times["in_line_cpu_us"] = self._in_line_cpu_us / self._block_steps
            self.seen.append({"round": number, "arm": arm, "steps": self._block_steps} | times)
        steering.health = self._health[self._turns[block][1]] if block < len(self._turns) else None
        if steering.health is not None:
            steering.health.signs.begin()
        self._in_line_us = self._in_line_cpu_us = 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def _make(self, steering: Any) -> None:
        for arm, settings in ARMS.items():
            self._health[arm] = None
            if settings is not None:
                health = RankHealth(
                    steering.training, steering.opened(), HealthSettings.model_validate(settings), steering.plan
                )
                for name in IN_LINE:
                    setattr(health, name, self._timed(getattr(health, name)))
                self._health[arm] = health

    def _timed(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def measured(step: int) -> None:
            begun_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            call(step)
            self._in_line_cpu_us += (time.thread_time_ns() - cpu_ns) / 1e3
            self._in_line_us += (time.perf_counter_ns() - begun_ns) / 1e3

        return measured
