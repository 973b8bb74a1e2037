"""Clock of the forward passes of a step: a rank's own work, before it waits for other ranks.

With DDP and ZeRO 0 to 2 a forward pass has no collective, so that a slow rank's is longer than the others'. With ZeRO 3
all ranks gather weights in it and wait for each other: there it tells nothing of one rank, and is not measured.
On a GPU the pass is timed by events on its stream, which are read at the next boundary.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

SAMPLES_ARE = ("input_ids", "inputs_embeds", "input_values", "pixel_values", "inputs", "x")
"""Keys of a batch that hold the samples, tried before any other tensor of it."""


class ForwardClock:
    """Times and sizes of the forward passes since `take`. `is_timed`: whether they tell of this rank alone."""

    def __init__(self, device: torch.device, is_timed: bool) -> None:
        self._on_gpu, self._is_timed = device.type == "cuda", is_timed
        self._events: list[tuple[Any, Any]] = []
        self._handles: list[RemovableHandle] = []
        self._began: tuple[Any] | None = None
        self._spent_s = 0.0
        self.tokens = 0
        self.first_began_s: float | None = None

    def watch(self, model: torch.nn.Module) -> None:
        """Time the passes of a script's own loop by hooks on its model; compiled ones are not seen."""
        if self._handles:
            return

        def begin(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not torch.compiler.is_compiling() and module.training:
                self._began = (self.begin(inputs or named),)

        def end(module: torch.nn.Module, *unused: object) -> None:
            if not torch.compiler.is_compiling() and self._began is not None:
                (began,), self._began = self._began, None
                self.end(began)

        self._handles = [
            model.register_forward_pre_hook(begin, with_kwargs=True),
            model.register_forward_hook(end, always_call=True),
        ]

    def leave(self) -> None:
        """Take the hooks down."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def running(self, batch: object) -> Iterator[None]:
        """Time a forward pass of this batch."""
        began = self.begin(batch)
        try:
            yield
        finally:
            self.end(began)

    def begin(self, batch: object) -> Any:
        """Begin a pass; give the result to `end`."""
        now_s = time.perf_counter()
        if self.first_began_s is None:
            self.first_began_s = now_s
        self.tokens += count_tokens(batch)
        return (now_s, self._event()) if self._is_timed else None

    def end(self, began: Any) -> None:
        """End the pass."""
        if began is None:
            return
        began_s, event = began
        if event is None:
            self._spent_s += time.perf_counter() - began_s
        else:
            self._events.append((event, self._event()))

    def _event(self) -> Any:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> "ForwardTimes":
        """Return what was measured, and begin anew."""
        times = ForwardTimes(self._spent_s if self._is_timed else None, self._events, self.tokens)
        self._events, self._spent_s, self.tokens, self.first_began_s = [], 0.0, 0, None
        return times


class ForwardTimes:
    """Forward passes of one step."""

    def __init__(self, spent_s: float | None, events: list[tuple[Any, Any]], tokens: int) -> None:
        self._spent_s, self._events, self.tokens = spent_s, events, tokens

    def seconds(self) -> float | None:
        """Return the time of all passes; None if it tells nothing. On a GPU: one boundary later, without a wait."""
        if self._spent_s is None or not self._events:
            return self._spent_s
        self._events[-1][1].synchronize()
        return self._spent_s + sum(began.elapsed_time(ended) for began, ended in self._events) / 1e3


def count_tokens(batch: object) -> int:
    """Return the tokens of a batch, or its samples if it has none: a matrix of whole numbers holds tokens."""
    tensor = _first_tensor(batch)
    if tensor is None or tensor.dim() == 0:
        return 0
    is_tokens = tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype is not torch.bool
    return tensor.numel() if is_tokens else int(tensor.shape[0])


def _first_tensor(batch: object) -> torch.Tensor | None:
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        mapping: Any = batch
        for key in (*(key for key in SAMPLES_ARE if key in mapping), *mapping.keys()):
            if (tensor := _first_tensor(mapping[key])) is not None:
                return tensor
        return None
    values: Any = batch if isinstance(batch, tuple | list) else ()
    return next((tensor for value in values if (tensor := _first_tensor(value)) is not None), None)
