"""Detection of script state that a restart cannot restore exactly, such as a generator that a dataset keeps.

    kept_generators(data, name)       random generators that the data keeps, in words
    facts(inexact, collectives)       the reasons of all ranks, for the log, `steer status` and a replay's verdict

A generator that a script keeps moves on with every draw, and no checkpoint holds it: after a restart it starts anew.
Data that draws from the global generators is exact, see `seeded_loading`.
"""

import functools
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy
import torch

from control_plane.core.model.records import NOT_EXACT, Readback
from ray_jobs.process.collectives import Collectives

log = logging.getLogger(__name__)

GENERATORS = (torch.Generator, numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
EXACT_BY_THEMSELVES = ("datasets.", "accelerate.", "torch.utils.data.sampler", "numpy.", "pyarrow.", "tokenizers")
"""Modules whose objects are not searched: they reseed their generators in each epoch, or have none."""

MAKES_SAMPLES = ("__getitem__", "__getitems__", "__iter__", "__next__", "__call__")
"""Methods that are searched."""

MAX_LOOKED_AT = 2000
MAX_DEPTH = 5
MAX_PARTS = 32
"""Bounds of the search: a dataset may hold millions of samples in lists."""


def facts(inexact: tuple[str, ...], collectives: Collectives) -> Readback:
    """Collective. Return the union of all ranks' reasons as a fact; empty if there is none."""
    everyone = collectives.all_gather(inexact)
    reasons = sorted({reason for one in everyone for reason in one})
    for reason in reasons:
        log.warning("not exact after a failure: %s", reason)
    return {NOT_EXACT: reasons} if reasons else {}


def kept_generators(root: object, name: str) -> list[str]:
    """Return a reason for each generator that an object keeps, called `name` in messages."""
    try:
        kept = own_generators(root, name)
    except Exception as error:  # an attribute of the script's may do anything when it is asked for
        log.info("%s was not looked through for random generators: %s: %s", name, type(error).__name__, error)
        return []
    return [f"random numbers from {path} ({kind}), which the script keeps" for path, kind in kept]


def own_generators(root: object, name: str) -> list[tuple[str, str]]:
    """Return the generators that an object holds, as (path, kind)."""
    generators, seen = list[tuple[str, str]](), set[int]()
    waiting = [(name, root, 0)]
    while waiting and len(seen) < MAX_LOOKED_AT:
        path, value, depth = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_generator(value):
            generators.append((path, f"{type(value).__module__}.{type(value).__qualname__}".replace("._generator", "")))
        elif _has_a_seeded_generator(value):
            generators.append((f"{path}.seed", "a generator of Transformers' collator"))
        elif depth < MAX_DEPTH:
            waiting += [(f"{path}{step}", part, depth + 1) for step, part in _parts(value)]
    return generators


def _is_generator(value: object) -> bool:
    return isinstance(value, GENERATORS) or type(value) is random.Random


def _has_a_seeded_generator(value: object) -> bool:
    """Return whether this is a collator of Transformers that makes a generator with the first batch."""
    return type(value).__module__.startswith("transformers.data") and getattr(value, "seed", None) is not None


def _parts(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str | bytes | int | float | type | ModuleType | torch.Tensor | torch.nn.Module):
        return
    if type(value).__module__.startswith(EXACT_BY_THEMSELVES):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items())[:MAX_PARTS])
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value[:MAX_PARTS]))
    elif isinstance(value, functools.partial):
        yield from (("", part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, FunctionType):
        yield from _parts_of_a_function(value)
    elif hasattr(value, "__self__"):
        yield "", value.__self__
    else:
        yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))
        methods = (getattr(type(value), name, None) for name in MAKES_SAMPLES)
        yield from ((f".{method.__name__}", method) for method in methods if isinstance(method, FunctionType))


def _parts_of_a_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield a function's closure, its defaults, and the generators among the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing has been put in it yet
            yield f":{name}", cell.cell_contents
    yield from (
        (":default", part) for part in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    )
    for name in function.__code__.co_names:
        if _is_generator(named := function.__globals__.get(name)):
            yield f":{name}", named
