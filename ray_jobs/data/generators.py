"""Random generators (Python, NumPy, PyTorch CPU): run a piece of work under its own seed, then restore them.

    with seeded(seed_of(7, "batch", 3)):     # Python's, NumPy's and PyTorch's global generators; none of a GPU
        ...
    seed_all(seed)                           # for a process that has nothing to put back: a loader's worker

Used around every batch that is loaded, so it has to be fast: see `_NumpyGenerator`.
"""

import ctypes
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

SEED_BYTES = 8
MT19937_BYTES = 625 * 4
"""NumPy's `mt19937_state`: 624 words and a position."""


def seed_of(*place: int | str) -> int:
    """Return a seed derived from `place` alone, the same on every machine."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed the three CPU generators. `torch.manual_seed` would seed the GPUs' too."""
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators inside, and restore their state afterwards. May be nested."""
    python, tensors, arrays = random.getstate(), torch.default_generator.get_state(), _numpy.set_aside()
    try:
        seed_all(seed)
        yield
    finally:
        random.setstate(python)
        torch.default_generator.set_state(tensors)
        _numpy.put_back(*arrays)


class _NumpyGenerator:
    """Saves and restores NumPy's global generator by exchanging its bit generator.

    To read and write its state takes 60 us, which is more than all the rest. An exchange takes less than one, but
    forgets the second of two normal numbers, if one is kept for the next call. None is kept if none was when this
    was last looked at, and no bit has been drawn since: only then is the state not copied.
    """

    def __init__(self) -> None:
        self._inside = numpy.random.MT19937(0)
        # A generator, and its bits when no normal number was kept for it.
        self._plain: tuple[numpy.random.BitGenerator, bytes] | None = None

    def set_aside(self) -> tuple[numpy.random.BitGenerator, dict[str, Any] | None]:
        theirs, kept = numpy.random.mtrand.get_bit_generator(), None
        if self._plain is None or self._plain[0] is not theirs or self._plain[1] != _bits(theirs):
            kept = numpy.random.get_state(legacy=False)
        numpy.random.mtrand.set_bit_generator(self._inside if theirs is not self._inside else numpy.random.MT19937(0))
        return theirs, kept

    def put_back(self, theirs: numpy.random.BitGenerator, kept: dict[str, Any] | None) -> None:
        numpy.random.mtrand.set_bit_generator(theirs)
        if kept is None:
            return
        self._plain = None
        if kept["has_gauss"]:
            numpy.random.set_state(kept)
        elif isinstance(theirs, numpy.random.MT19937):
            self._plain = theirs, _bits(theirs)

    def forget(self) -> None:
        self._plain = None


def _bits(generator: numpy.random.BitGenerator) -> bytes:
    return ctypes.string_at(generator.ctypes.state_address, MT19937_BYTES)


_numpy = _NumpyGenerator()


def state_was_set() -> None:
    """Invalidate the cache after NumPy's state was set: another state may have had the same bits."""
    _numpy.forget()
