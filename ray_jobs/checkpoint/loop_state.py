"""Loop state beside DeepSpeed's: random generators, schedule, loss sums, parameter groups, knobs.

    saved = captured(trainer)                 at a step boundary, after the step's logging and evaluation
    restore(trainer, saved)                   in a new trainer, when its loop is about to begin
    restore_random(saved)                     after the first batch was fetched, right before the first forward

Neither DeepSpeed nor Transformers restores these exactly: Transformers' loss sums begin at zero, and neither knows the
steered values.
"""

import random
from typing import Any

import numpy
import torch

from control_plane.core.model.errors import Diverged
from ray_jobs.checkpoint.universal import plain_groups
from ray_jobs.data.generators import state_was_set
from ray_jobs.hf import script_callbacks
from ray_jobs.steering.actions import OwnVocabulary
from ray_jobs.steering.freezing import FrozenParameters, frozen_parameters
from ray_jobs.steering.knobs import Knobs
from ray_jobs.steering.schedule import SteeredSchedule, live_groups

Progress = dict[str, Any]

CALLBACKS = "callbacks"
"""Key of the script callbacks' states, which digests leave out: they may hold times of day."""


def captured(trainer: Any) -> Progress:
    """Return this rank's loop state, as plain values and tensors for `torch.save`."""
    schedule: SteeredSchedule | None = getattr(trainer, "steered_schedule", None)
    knobs: Knobs | None = getattr(trainer, "steered_knobs", None)
    memory = knobs.memory() if knobs is not None else {}
    saved: Progress = {
        "random": random_state(),
        "tr_loss": float(getattr(trainer, "_tr_loss", 0.0)),
        "total_loss_scalar": float(getattr(trainer, "_total_loss_scalar", 0.0)),
        "globalstep_last_logged": int(getattr(trainer, "_globalstep_last_logged", 0)),
        "initial_global_step": int(getattr(trainer, "_initial_global_step", 0)),
        "current_flos": float(getattr(trainer, "current_flos", 0.0)),
        "schedule": schedule.memory() if schedule is not None else None,
        "lr_scheduler": _plain(schedule.state_dict()) if schedule is not None else None,
        "groups": plain_groups(live_groups(trainer)()),
    }
    # Left out while no knob was set: then it is what it was before there were knobs, to the last digit of its digest.
    kept = script_callbacks.captured(trainer)
    told = {CALLBACKS: kept} if kept else {}
    return saved | _stream(trainer) | ({"knobs": memory} if memory else {}) | _own(trainer) | _frozen(trainer) | told


def _stream(trainer: Any) -> Progress:
    """Return the position in a stream without a length: its pass, from 0, and the steps made in it."""
    place = getattr(trainer, "stream_place", None)
    return {"stream": list(place)} if place is not None else {}


def _own(trainer: Any) -> Progress:
    """Return the script's extensions; nothing for a script without any, whose checkpoints keep their old form."""
    vocabulary: OwnVocabulary | None = getattr(trainer, "own_vocabulary", None)
    memory = vocabulary.memory() if vocabulary is not None else {}
    return {"own": memory} if memory else {}


def _frozen(trainer: Any) -> Progress:
    frozen: FrozenParameters | None = getattr(trainer, "frozen_parameters", None)
    return {"frozen": frozen.memory()} if frozen is not None and frozen.names else {}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without functions: a new scheduler has its own, and they must not be unpickled."""
    return {key: value for key, value in state.items() if not callable(value)}


def restore(trainer: Any, saved: Progress) -> None:
    """Restore everything but the random generators. Schedule and knobs must exist.

    Raises `Diverged` if a parameter group or a knob does not hold what was saved.
    """
    schedule: SteeredSchedule = trainer.steered_schedule
    if saved["lr_scheduler"] and schedule.inner is not None:
        schedule.inner.load_state_dict(saved["lr_scheduler"])
    schedule.recall(saved["schedule"])
    groups = live_groups(trainer)()
    for group, values in zip(groups, saved["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    for index, (found, wanted) in enumerate(zip(plain_groups(groups), saved["groups"], strict=True)):
        wrong = sorted(key for key in wanted if found.get(key) != wanted[key])
        if wrong:
            raise Diverged(f"{wrong[0]} of group {index} was {wanted[wrong[0]]} and reads {found.get(wrong[0])}")
    if saved.get("frozen") or hasattr(trainer, "frozen_parameters"):
        frozen_parameters(trainer).recall(saved.get("frozen", ()))
    if getattr(trainer, "own_vocabulary", None) is not None:
        trainer.own_vocabulary.recall(saved.get("own", {}))
    knobs: Knobs | None = getattr(trainer, "steered_knobs", None)
    if knobs is not None:
        # After the load: ZeRO 1 and 2 have put back the clipping of the checkpoint, and ZeRO 3 has not.
        knobs.recall(saved.get("knobs", {}))
    trainer._tr_loss.fill_(saved["tr_loss"])
    trainer._total_loss_scalar = saved["total_loss_scalar"]
    trainer._globalstep_last_logged = saved["globalstep_last_logged"]
    # The mean loss that Transformers tells at the end is over all steps, not over those since the restart.
    trainer._initial_global_step = saved["initial_global_step"]
    trainer.current_flos = saved["current_flos"]


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
