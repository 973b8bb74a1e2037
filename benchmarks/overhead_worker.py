"""One rank of the overhead benchmark: plain and steered trainings in turns, in the same process.

Both arms train the same model on the same data with the same arguments and the same `StepClock`; the steered arm is
what a user gets from `make_interactive`, with a real control actor at the other end of its link.
"""

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training import arguments, forget_trainer, prepare_rank, shipped_config
from control_plane.storage.layout import RunFiles
from ray_jobs import context
from ray_jobs.config import RunConfig

ARMS = ("plain", "steered")
SETTLING_STEPS = 30
"""A training that does not count goes first: a process's first training also fills its caches."""


def main(given: dict[str, Any]) -> None:
    """Ray Train's worker; `given`: root (the run's folder), pairs, steps, warm_up_steps. Writes `rank-R.json` there."""
    prepare_rank()
    from ray_jobs.workloads import build

    rank, files, config = int(os.environ["RANK"]), RunFiles(Path(given["root"])), shipped_config()
    workload = build(config)
    train_arm("plain", files, config, workload, SETTLING_STEPS, 1)
    timed = []
    for pair in range(given["pairs"]):
        for arm in ARMS if pair % 2 == 0 else ARMS[::-1]:
            timed.append({"pair": pair, "arm": arm})
            timed[-1] |= train_arm(arm, files, config, workload, given["steps"], given["warm_up_steps"])
            (files.root / f"progress-{rank}").write_text(f"{len(timed)} of {2 * given['pairs']} trainings")
    (files.root / f"rank-{rank}.json").write_text(json.dumps(timed))


def train_arm(
    arm: str, files: RunFiles, config: RunConfig, workload: Any, steps: int, warm_up_steps: int
) -> dict[str, Any]:
    """Collective. One training from fresh weights; answers `steps_per_s` and `boundary_us` of the steps that count."""
    from transformers import Trainer, set_seed

    from control_plane.ray_handle import RayHandle
    from ray_jobs.trainer import InteractiveTrainer

    steered = arm == "steered"
    context.enter(context.RunContext(files, lambda: RayHandle(files)) if steered else None)
    set_seed(config.seed)
    trainer = (InteractiveTrainer if steered else Trainer)(
        model=copy.deepcopy(workload.model),
        args=arguments(config, files.root / "trainer", warm_up_steps + steps),
        train_dataset=workload.train_dataset,
    )
    clock, boundary = step_clock(warm_up_steps), boundary_clock(trainer)
    trainer.add_callback(clock)
    if steered:
        trainer.add_callback(boundary)
    trainer.train()
    forget_trainer(trainer)
    return {"steps_per_s": clock.steps_per_s(), "boundary_us": boundary.taken_us()[warm_up_steps:]}


def step_clock(warm_up_steps: int) -> Any:
    """A callback that looks at the clock after each step, in both arms alike."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        """Ends of steps, in seconds."""

        def __init__(self) -> None:
            self.ends_s: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """One look."""
            self.ends_s.append(time.perf_counter())

        def steps_per_s(self) -> float:
            """From the end of the last warm-up step to the end of the last step."""
            counted_s = self.ends_s[warm_up_steps - 1 :]
            return (len(counted_s) - 1) / (counted_s[-1] - counted_s[0])

    return StepClock()


def boundary_clock(trainer: Any) -> Any:
    """A callback that measures the boundary from outside; it is the steered arm's own burden, and below 1 us."""
    from transformers import TrainerCallback

    from ray_jobs.callbacks import InteractiveCallback

    class BoundaryClock(TrainerCallback):
        """Time in `begin_step` and `end_step` together, by step, in microseconds."""

        def __init__(self) -> None:
            self._begin_us: list[float] = []
            self._end_us: list[float] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The session is open by now: stand between it and the trainer."""
            callbacks = trainer.callback_handler.callbacks
            session: Any = next(one for one in callbacks if isinstance(one, InteractiveCallback)).opened()
            session.begin_step = timed(session.begin_step, self._begin_us)
            session.end_step = timed(session.end_step, self._end_us)

        def taken_us(self) -> list[float]:
            """One value a step."""
            return [begin + end for begin, end in zip(self._begin_us, self._end_us, strict=True)]

    return BoundaryClock()


def timed(call: Callable[[int], None], taken_us: list[float]) -> Callable[[int], None]:
    """The same call, which also writes down how long it took."""

    def measured(step: int) -> None:
        begun_ns = time.perf_counter_ns()
        call(step)
        taken_us.append((time.perf_counter_ns() - begun_ns) / 1e3)

    return measured
