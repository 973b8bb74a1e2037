"""Loop state beside DeepSpeed's: random generators, schedule, loss sums, parameter groups, knobs.

    saved = captured(training)                at a step boundary, after the step's logging and evaluation
    restore(training, saved)                  in a new training, when its loop is about to begin
    restore_random(saved)                     after the first batch was fetched, right before the first forward

Neither DeepSpeed nor Transformers restores these exactly: Transformers' loss sums begin at zero, and neither knows the
steered values.
"""

import random
from typing import Any

import numpy
import torch

from control_plane.core.model.data import MIXTURE
from control_plane.core.model.errors import Diverged
from ray_jobs.checkpoint.universal import plain_groups
from ray_jobs.data.generators import state_was_set
from ray_jobs.rank.live_training import LiveTraining

Progress = dict[str, Any]

CALLBACKS = "callbacks"
"""Key of the script callbacks' states, which digests leave out: they may hold times of day."""

HEALTH = "health"
"""Key of rank 0's health checks, which digests leave out: their windows hold times, and a fork may set other ones."""


def captured(training: LiveTraining) -> Progress:
    """Return this rank's loop state, as plain values and tensors for `torch.save`.

    Parts that are not in use are left out: so checkpoints and their digests are what they were before there were such.
    """
    schedule, loop = training.schedule, training.loop
    saved: Progress = {
        "random": random_state(),
        **loop.loss_sums(),
        "schedule": schedule.memory(),
        "lr_scheduler": _plain(schedule.state_dict()),
        "groups": plain_groups(training.groups()),
    }
    optional = {
        "stream": loop.stream_place.memory() if loop.stream_place is not None else None,
        "skipped": loop.skipped.memory(),
        MIXTURE: loop.mixture.memory(loop.skipped.data_step(loop.step + 1)) if loop.mixture is not None else None,
        "knobs": training.knobs.memory(),
        "own": training.extensions.memory(),
        "frozen": training.frozen.memory(),
        CALLBACKS: loop.script_state(),
        HEALTH: training.health.state(),
    }
    return saved | {name: part for name, part in optional.items() if part}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without functions: a new scheduler has its own, and they must not be unpickled."""
    return {key: value for key, value in state.items() if not callable(value)}


def restore(training: LiveTraining, saved: Progress) -> None:
    """Restore everything but the random generators.

    Raises `Diverged` if a parameter group or a knob does not hold what was saved.
    """
    schedule = training.schedule
    if saved["lr_scheduler"] and schedule.inner is not None:
        schedule.inner.load_state_dict(saved["lr_scheduler"])
    schedule.recall(saved["schedule"])
    groups = training.groups()
    for group, values in zip(groups, saved["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    for index, (live, wanted) in enumerate(zip(plain_groups(groups), saved["groups"], strict=True)):
        wrong = sorted(key for key in wanted if live.get(key) != wanted[key])
        if wrong:
            raise Diverged(f"{wrong[0]} of group {index} was {wanted[wrong[0]]} and reads {live.get(wrong[0])}")
    training.frozen.recall(saved.get("frozen", ()))
    training.extensions.recall(saved.get("own", {}))
    training.health.restored = saved.get(HEALTH, {})
    # After the load: ZeRO 1 and 2 have put back the clipping of the checkpoint, and ZeRO 3 has not.
    training.knobs.recall(saved.get("knobs", {}))
    training.loop.restore_loss_sums(saved)
    training.loop.restore_skipped(saved.get("skipped", ()))
    if training.loop.mixture is not None and MIXTURE in saved:
        training.loop.mixture.recall(saved[MIXTURE], training.loop.skipped.data_step(training.loop.step + 1))


def restore_random(saved: Progress) -> None:
    """Restore every random generator of this rank."""
    state = saved["random"]
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    state_was_set()
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_state() -> Progress:
    """Return the state of every random generator that training draws from, on this rank."""
    state: Progress = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
