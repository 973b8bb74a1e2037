"""Fingerprint of a training among those of a script: a digest of its model's shapes and of its data.

    fingerprint(model, data)      rank 0, before the engine is built

Of the data a few samples are read, spread over all of it, with the generators as they are kept for it. What cannot be
read, or is drawn anew at every look, counts by its kind and length alone.
"""

import hashlib
import logging
import random
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy
import torch

from ray_jobs.checkpoint.capture import canonical, model_shapes
from ray_jobs.steering.appliers import random_state_kept

log = logging.getLogger(__name__)

SAMPLES = 16
"""Number of samples to read: folds of one data set differ in some of them."""


@runtime_checkable
class Indexed(Protocol):
    """Data with samples by index."""

    def __getitem__(self, index: int) -> object:
        """Return a sample."""


def fingerprint(model: torch.nn.Module, data: object) -> str:
    """Return a SHA-256 that is the same at every start of the same training, on any number of ranks."""
    digest = hashlib.sha256(model_shapes(model)[0].encode())
    digest.update(f"{type(data).__qualname__}:{_length(data)}".encode())
    digest.update(_content(data).encode())
    return digest.hexdigest()


def _length(data: object) -> int | None:
    try:
        return len(data)  # type: ignore[arg-type]
    except Exception:  # a stream has none
        return None


def _content(data: object) -> str:
    """Return a digest of some samples; empty if reading them twice gives different ones."""
    length = _length(data)
    if not length or not isinstance(data, Indexed):
        return ""
    places = sorted({place * (length - 1) // (SAMPLES - 1) for place in range(SAMPLES)})
    try:
        looks = {_look(data, places, seed) for seed in (0, 1)}
    except Exception as error:
        log.info("no sample of the data can be compared: %s: %s", type(error).__name__, error)
        return ""
    return looks.pop() if len(looks) == 1 else ""


def _look(data: Indexed, places: Iterable[int], seed: int) -> str:
    digest = hashlib.sha256()
    with random_state_kept():
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        for place in places:
            for block in canonical(data[place]):
                digest.update(block)
    return digest.hexdigest()
