"""What a training knows beside DeepSpeed's state: random generators, schedule, loss sums, the Trainer's own counters."""

import random
from typing import Any

import numpy
import torch


def captured(trainer: Any) -> dict[str, Any]:
    """This rank's progress, as plain values and tensors that `torch.save` takes."""
    return {"random": random_state()}


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from, on this rank."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
