"""Rank of the `busy` benchmark: a steered Trainer with disturbances that are not failures, by rank 0's clock.

lock       one C call that holds the GIL: a sleep, or a sum that takes a core, in turns
callback   a callback of the user's own, while the other rank waits
saving     the last save, of rank 0, when rank 1 has ended
"""

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from benchmarks.gpu.steered import Setting, Training, steer
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint import writer
from ray_jobs.hf.trainer import steering_of

NO_STEPS_LIMIT = 10**7
PAD_S = 0.05
"""Pause between two steps: a step of this model takes no time, and the machine has other users."""

NOTHING, OVER = 0, -1
TRIED = 10**7


@dataclass(frozen=True)
class Disturbance:
    """Disturbance of one rank at a time (seconds after the first step), with its duration."""

    at_s: float
    kind: str
    rank: int
    for_s: float


def schedule(minutes: float, lock_s: float, callback_s: float) -> list[Disturbance]:
    """Return the disturbances: a callback on each rank in turns in half of the time, the lock in the rest."""
    planned: list[Disturbance] = []
    at_s, number = 10.0, 0
    while True:
        kind, for_s = ("callback", callback_s) if number % 6 == 1 else ("lock", lock_s)
        if at_s + for_s + 10.0 > 60 * minutes:
            return planned
        # Callbacks on one rank, then on the other; both kinds of the lock on both.
        planned.append(Disturbance(at_s, kind, (number // 6 if kind == "callback" else number // 2) % 2, for_s))
        at_s += for_s + 15.0
        number += 1


class Disturber(TrainerCallback):
    """Collective callback that runs due disturbances at the end of a step, and ends the training in time."""

    def __init__(self, trainer: Trainer, spec: dict[str, Any], rank: int) -> None:
        self._trainer, self._spec, self._rank = trainer, spec, rank
        self._plan = [Disturbance(**each) for each in spec["plan"]]
        self._began_s: float | None = None
        self._group: Any = None
        self.done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Collective. Run the disturbance that rank 0 broadcasts."""
        time.sleep(PAD_S)
        if self._began_s is None:
            self._began_s, self._group = time.monotonic(), dist.new_group(backend="gloo")
        due = torch.tensor([self._due(time.monotonic() - self._began_s)])
        dist.broadcast(due, src=0, group=self._group)
        number = int(due.item())
        if number == OVER:
            self._save_slowly_at(state.global_step)
            control.should_training_stop = True
        elif number != NOTHING:
            self.done += 1
            if self._plan[number - 1].rank == self._rank:
                disturb(self._plan[number - 1], number)
        return control

    def _due(self, now_s: float) -> int:
        if self.done < len(self._plan) and now_s >= self._plan[self.done].at_s:
            return self.done + 1
        return OVER if now_s >= 60 * self._spec["minutes"] else NOTHING

    def _save_slowly_at(self, step: int) -> None:
        steering_of(self._trainer).saver.every_steps = step
        write = writer._write_shard

        def slowly(*args: Any, **kwargs: Any) -> Any:
            writer._write_shard = write  # one file is enough
            time.sleep(self._spec["save_s"])
            return write(*args, **kwargs)

        if self._rank == 0:
            writer._write_shard = slowly


def disturb(what: Disturbance, number: int) -> None:
    """Block this rank for the duration of the disturbance."""
    if what.kind == "callback":
        time.sleep(what.for_s)
    elif number % 2:
        # `PyDLL` holds the GIL during a call, as some C extensions do.
        ctypes.PyDLL(None).usleep(int(what.for_s * 1e6))
    else:
        began_s = time.perf_counter()
        sum(range(TRIED))
        sum(range(int(TRIED * what.for_s / (time.perf_counter() - began_s))))


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Train to the end of the time, and return the number of disturbances survived."""
    hinders: list[Disturber] = []

    def attach(trainer: Trainer) -> TrainerCallback:
        hinders.append(Disturber(trainer, spec, rank))
        return hinders[0]

    setting = Setting(rank=rank, world_size=dist.get_world_size(), rehearse=True, folder=Path(spec["folder"]))
    training = Training(
        "busy",
        steps=NO_STEPS_LIMIT,
        precision="fp32",
        layers=1,
        save_every=spec["save_every"],
        hang_after_s=spec["hang_after_s"],
        callbacks=(attach,),
    )
    began_s = time.monotonic()
    seen = steer(setting, training)
    files = RunFiles(setting.folder / "runs" / training.name)
    return {
        "steps": seen.final["step"],
        "done": hinders[0].done,
        "seconds": time.monotonic() - began_s,
        "checkpoints": len(list(files.checkpoints.glob("*/manifest.json"))),
    }
