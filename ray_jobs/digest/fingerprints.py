"""Fingerprint of a training among those of a script: a digest of its model's shapes and of its data.

    fingerprint(trainer)      rank 0, before the engine is built

Of the data a few samples are read, spread over all of it, with the generators as they are kept for it. What cannot be
read, or is drawn anew at every look, counts by its kind and length alone.
"""

import hashlib
import logging
import random
from collections.abc import Iterable
from typing import Any

import numpy
import torch

from ray_jobs.checkpoint.capture import canonical, model_shapes
from ray_jobs.steering.appliers import random_state_kept

log = logging.getLogger(__name__)

SAMPLES = 16
"""Number of samples to read: folds of one data set differ in some of them."""


def fingerprint(trainer: Any) -> str:
    """Return a SHA-256 that is the same at every start of the same training, on any number of ranks."""
    data = getattr(trainer, "train_dataset", None)
    digest = hashlib.sha256(model_shapes(trainer.model)[0].encode())
    digest.update(f"{type(data).__qualname__}:{_length(data)}".encode())
    digest.update(_content(data).encode())
    return digest.hexdigest()


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # a stream has none
        return None


def _content(data: Any) -> str:
    """Return a digest of some samples; empty if reading them twice gives different ones."""
    length = _length(data)
    if not length or not hasattr(data, "__getitem__"):
        return ""
    places = sorted({place * (length - 1) // (SAMPLES - 1) for place in range(SAMPLES)})
    try:
        looks = {_look(data, places, seed) for seed in (0, 1)}
    except Exception as error:
        log.info("no sample of the data can be compared: %s: %s", type(error).__name__, error)
        return ""
    return looks.pop() if len(looks) == 1 else ""


def _look(data: Any, places: Iterable[int], seed: int) -> str:
    digest = hashlib.sha256()
    with random_state_kept():
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        for place in places:
            for block in canonical(data[place]):
                digest.update(block)
    return digest.hexdigest()
