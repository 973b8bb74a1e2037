"""Rank of the overhead benchmark: steered and plain arms in turns, in the same process.

The steered arm is that of `make_interactive`, with a real control actor and the ranks' monitors, as after `steer
submit`. A plain block is made by the same Trainer without Steerway's callbacks; a plain training by Transformers' own
Trainer, in a process without threads of Steerway.
"""

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, set_seed

from benchmarks.harness.training import arguments, forget_trainer, fresh_model, random_blocks, shipped_config
from control_plane.actor.remote import RayHandle
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.layout import RunFiles
from ray_jobs.config.run_config import RunConfig
from ray_jobs.driver import preemption, ray_internals
from ray_jobs.hf.trainer import InteractiveTrainer, steering_of
from ray_jobs.process import context

TURNS = ("steered", "plain", "again")
"""Arms of one round; every other round is reversed. `again` is a second plain arm, always beside the first."""

BLOCK_STEPS = 20
TRAINING_STEPS = 60
QUICK_STEPS = 5
WARM_UP_STEPS = 10
SETTLING_STEPS = 30
"""Steps before the blocks: the first steps of a process also fill its caches."""

SAMPLES = 4096
EPOCH = 1 << 17
"""So long that no training reaches the end of an epoch, which is not in every block."""

MONITOR_END_S = 10.0
Say = Callable[[str], object]
PROCESS = ("process", 0)
THREADS, LASTING_THREAD = "steerway-", "steerway-preemption"


def plan(rounds: int) -> list[tuple[int, str]]:
    """Return the round and the arm of each turn: A B b b B A A B b ..., so that a steady drift cancels."""
    return [(number, arm) for number in range(rounds) for arm in (TURNS if number % 2 == 0 else TURNS[::-1])]


def train(given: dict[str, Any], files: RunFiles, tell: Say) -> dict[str, Any]:
    """Collective. Measure blocks and trainings. `given`: blocks, pairs, quick."""
    config = shipped_config()
    bench = Bench(files, config, Repeated(random_blocks(config, SAMPLES)))
    gc.collect()
    gc.freeze()
    block_steps, training_steps = (QUICK_STEPS, QUICK_STEPS) if given["quick"] else (BLOCK_STEPS, TRAINING_STEPS)
    blocks = bench.in_blocks(plan(given["blocks"]), block_steps, tell)
    trainings = []
    for number, arm in (turns := plan(given["pairs"])):
        trainings.append({"round": number, "arm": arm} | bench.whole(arm == "steered", training_steps))
        tell(f"{len(trainings)} of {len(turns)} trainings")
    return {"blocks": blocks, "trainings": trainings}


class Repeated(Dataset[Any]):
    """Dataset that repeats a few samples in a long epoch."""

    def __init__(self, samples: list[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> Any:
        return self._samples[index % len(self._samples)]


class Meter:
    """Meter of wall time and processor time of this process and its children, with Steerway's threads and monitors."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.start()

    def start(self) -> None:
        """Start measuring."""
        # The process is read last here and first in `read`, which excludes the time of reading.
        self._began = self._parts() | {PROCESS: time.process_time()}
        self._began_s = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return the times since `start`, without threads and children that have ended."""
        wall_s = time.perf_counter() - self._began_s
        spent_s: dict[str, float] = {}
        for (what, number), taken_s in ({PROCESS: time.process_time()} | self._parts()).items():
            spent_s[what] = spent_s.get(what, 0.0) + taken_s - self._began.get((what, number), 0.0)
        threads_s, monitors_s = spent_s.get("thread", 0.0), spent_s.get("child", 0.0)
        return {
            "wall_s": wall_s,
            "cpu_s": spent_s["process"] + monitors_s,
            "threads_s": threads_s,
            "monitors_s": monitors_s,
        }

    def _parts(self) -> dict[tuple[str, int], float]:
        """Return the seconds of processor time so far, by thread and child."""
        taken_s: dict[tuple[str, int], float] = {}
        for thread in threading.enumerate():
            if thread.name.startswith(THREADS) and thread.native_id is not None:
                with suppress(OSError):  # it has ended
                    on_processor_ns = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]
                    taken_s["thread", thread.native_id] = int(on_processor_ns) / 1e9
        for child in self._process.children():
            with suppress(psutil.Error):
                times = child.cpu_times()
                taken_s["child", child.pid] = times.user + times.system
        return taken_s


class Bench:
    """Trainings of the benchmark, one after the other."""

    def __init__(self, files: RunFiles, config: RunConfig, data: Dataset[Any]) -> None:
        self._files, self._config, self._data = files, config, data
        self._is_steered = False
        import ray

        # Its thread lives as long as the process: in a plain training it only sleeps.
        drained = ray_internals.draining_nodes
        node = ray.get_runtime_context().get_node_id()
        preemption.watch(node, files.run, lambda: RayHandle(files), lambda: drained() if self._is_steered else {})

    def in_blocks(self, turns: list[tuple[int, str]], block_steps: int, tell: Say) -> list[dict[str, Any]]:
        """Collective. Make one steered training, whose callbacks are active in the steered blocks only."""
        # One step more: a block ends where the next step begins.
        trainer = self._trainer(True, SETTLING_STEPS + len(turns) * block_steps + 1)
        blocks = OverheadBlocks(trainer, turns, block_steps, tell)
        trainer.callback_handler.callbacks.insert(0, blocks)
        trainer.train()
        _leave(trainer)
        return blocks.seen

    def whole(self, steered: bool, steps: int) -> dict[str, Any]:
        """Collective. Make one training with new weights, and return the times of its steps after the warm-up.

        Raises `SteerwayError` if a plain one has threads of Steerway in its process, or a steered one has none.
        """
        trainer = self._trainer(steered, WARM_UP_STEPS + steps)
        clock = TrainingClock(WARM_UP_STEPS, steps)
        trainer.add_callback(clock)
        trainer.train()
        _leave(trainer)
        if bool(clock.beside) is not steered:
            beside = ", ".join(clock.beside) or "none"
            raise SteerwayError(
                f"threads and children of Steerway in a {'steered' if steered else 'plain'} training: {beside}"
            )
        return clock.seen

    def _trainer(self, steered: bool, steps: int) -> Any:
        self._is_steered = steered
        context.enter(self._run() if steered else None)
        set_seed(self._config.seed)
        return (InteractiveTrainer if steered else Trainer)(
            model=fresh_model(self._config),
            args=arguments(self._config, self._files.root / "trainer", steps),
            train_dataset=self._data,
        )

    def _run(self) -> context.RunContext:
        return context.RunContext(
            self._files,
            lambda: RayHandle(self._files),
            ranks=self._config.scaling.ranks,
            hang_after_s=self._config.recovery.hang_after_s,
            limits=self._config.limits,
        )


class OverheadBlocks(TrainerCallback):
    """Callback before all others that removes and inserts Steerway's callbacks, and times the blocks."""

    def __init__(self, trainer: Trainer, turns: list[tuple[int, str]], block_steps: int, tell: Say) -> None:
        self._trainer, self._turns, self._block_steps, self._tell = trainer, turns, block_steps, tell
        self._callbacks: list[TrainerCallback] = trainer.callback_handler.callbacks
        self._all = [self, *self._callbacks]
        self._plain = [each for each in self._all if not type(each).__module__.startswith("ray_jobs.")]
        self._boundary_us: list[float] = []
        self._meter = Meter()
        self.seen: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start a block if it is due: the step before is over, including its logging and its boundary."""
        made = state.global_step - SETTLING_STEPS
        if made < 0 or made % self._block_steps:
            return
        block = made // self._block_steps
        if block == 0:
            self._take_the_boundarys_time()
        else:
            number, arm = self._turns[block - 1]
            about = {"round": number, "arm": arm, "steps": self._block_steps}
            self.seen.append(about | self._meter.read() | {"boundary_us": self._boundaries_us()})
            self._tell(f"{block} of {len(self._turns)} blocks")
        steered = block == len(self._turns) or self._turns[block][1] == "steered"
        # In place: the callback handler is iterating over this list.
        self._callbacks[:] = self._all if steered else self._plain
        self._meter.start()

    def _take_the_boundarys_time(self) -> None:
        session: Any = steering_of(self._trainer).opened()
        session.begin_step = timed(session.begin_step, self._boundary_us)
        session.end_step = timed(session.end_step, self._boundary_us)

    def _boundaries_us(self) -> list[float]:
        """Return the sum of the boundary's two halves, for each step."""
        halves_us, self._boundary_us[:] = list(self._boundary_us), ()
        return [begin + end for begin, end in zip(halves_us[::2], halves_us[1::2], strict=True)]


class TrainingClock(TrainerCallback):
    """Callback that times the steps after the warm-up, and lists Steerway's threads and children at their end."""

    def __init__(self, warm_up_steps: int, steps: int) -> None:
        self._warm_up_steps, self._steps = warm_up_steps, steps
        self._meter = Meter()
        self.seen: dict[str, Any] = {}
        self.beside: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start after the warm-up, and stop after the last step."""
        if state.global_step == self._warm_up_steps:
            self._meter.start()
        elif state.global_step == self._warm_up_steps + self._steps:
            self.seen = {"steps": self._steps} | self._meter.read()
            self.beside = threads_and_children()


def threads_and_children() -> list[str]:
    """Return Steerway's threads in this process, by name, and its children."""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [name for name in names if name != LASTING_THREAD] + [f"process {child.pid}" for child in living]


def timed(call: Callable[[int], None], taken_us: list[float]) -> Callable[[int], None]:
    """Wrap a call to record its time."""

    def measured(step: int) -> None:
        begun_ns = time.perf_counter_ns()
        call(step)
        taken_us.append((time.perf_counter_ns() - begun_ns) / 1e3)

    return measured


def _leave(trainer: Trainer) -> None:
    """Release a training and end its monitor, which would wait for the next one's."""
    steering = getattr(trainer, "_steering", None)
    if steering is not None:
        steering._watchdog.leave()
    forget_trainer(trainer)
    deadline_s = time.monotonic() + MONITOR_END_S
    while threads_and_children() and time.monotonic() < deadline_s:
        time.sleep(0.05)
