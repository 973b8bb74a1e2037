"""Activations of a model's blocks, by hooks that stand for one forward pass: spread, dormant units, attention.

    probe = ActivationProbe(model, tokens=128, layers=8)
    probe.arm()                the first micro-batch of the coming step is measured
    signs = probe.take()       at the boundary after it; empty while nothing has been measured

Hooks read detached values, draw no random numbers and write nothing. They are put up when the forward pass of the
measured step begins, and taken down when it ends: other steps, evaluations, and what activation checkpointing computes
a second time in the backward pass do not meet them. Where `torch.compile` is in use there are none: they would become
a part of the compiled graph.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ray_jobs.health.attention import AttentionWatch
from ray_jobs.health.device_values import HostCopy
from ray_jobs.health.layer_groups import block_modules

log = logging.getLogger(__name__)

MAX_ROWS = 1024
"""Tokens (or samples) of a micro-batch that are looked at: enough for a mean, little beside the block's own work."""

DORMANT_SHARE = 0.025
"""A unit is dormant if its mean activation is at most this share of its layer's mean (ReDo, Sokar et al. 2023)."""

NOT_UNITS = ("Softmax", "LogSoftmax", "Softmin", "Softmax2d", "MultiheadAttention")
"""Classes of torch's activation module that are not activations of units."""

ACTIVATION_PACKAGES = ("torch.nn.modules.activation", "transformers.activations")


class ActivationProbe:
    """Hooks of one model on one rank. `reason`: why nothing is measured, in words, or None."""

    def __init__(self, model: torch.nn.Module, tokens: int, layers: int) -> None:
        self._model = model
        self._blocks = block_modules(model)
        self._attention = AttentionWatch(tokens, list(self._blocks), layers)
        self._entry: RemovableHandle | None = None
        self._handles: list[RemovableHandle] = []
        self._measured: dict[str, torch.Tensor] = {}
        self._copies: dict[str, HostCopy] = {}
        self.reason: str | None = None

    def arm(self) -> None:
        """Measure the next forward pass in training mode."""
        self.disarm()
        self.reason = why_compiled(self._model)
        if self.reason is None:
            self._entry = self._model.register_forward_pre_hook(self._begin)

    def disarm(self) -> None:
        """Remove every hook, and forget what was measured."""
        self._remove()
        if self._entry is not None:
            self._entry.remove()
            self._entry = None
        self._measured, self._copies = {}, {}
        self._attention.forget()

    def take(self) -> dict[str, float]:
        """Return what was measured, by the names of the catalogue; on a GPU it has arrived by now."""
        signs = {name: copy.values()[0] for name, copy in self._copies.items()}
        try:
            signs |= self._attention.signs()
        except RuntimeError as error:
            self.reason = f"the attention could not be measured: {error}"
        if self._entry is not None:
            self.reason = "the forward pass did not go through the model's own call, where hooks are"
        self.disarm()
        return signs

    def _begin(self, model: torch.nn.Module, inputs: object) -> None:
        if torch.compiler.is_compiling() or not model.training:
            return
        assert self._entry is not None
        self._entry.remove()
        self._entry = None
        self._handles.append(model.register_forward_hook(self._end, always_call=True))
        first_linear = next((module for module in model.modules() if isinstance(module, torch.nn.Linear)), None)
        for name, block in self._blocks.items():
            self._put_up(name, block, first_linear)
        self._attention.enter()

    def _put_up(self, name: str, block: torch.nn.Module, first_linear: torch.nn.Module | None) -> None:
        if block is not self._model:
            self._handles.append(block.register_forward_pre_hook(lambda *_: self._attention.begin(name)))
            self._handles.append(block.register_forward_hook(self._spread(name), always_call=True))
        units = [module for module in block.modules() if _is_activation(module)]
        if units:
            self._handles += [module.register_forward_hook(self._units_behind(name)) for module in units]
            return
        # A functional activation is no module: its units are what a linear layer behind it reads.
        linear = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        if linear and linear[-1] is not first_linear:
            self._handles.append(linear[-1].register_forward_pre_hook(self._units_before(name)))

    def _spread(self, name: str) -> Callable[..., None]:
        def note(module: torch.nn.Module, inputs: object, output: object) -> None:
            self._attention.end()
            if (hidden := _floating(output)) is not None:
                self._note(f"hidden_std/{name}", lambda: _rows(hidden).std())

        return note

    def _units_behind(self, name: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._dormant(name, output)

    def _units_before(self, name: str) -> Callable[..., None]:
        return lambda module, inputs: self._dormant(name, inputs)

    def _dormant(self, name: str, activations: object) -> None:
        if (units := _floating(activations)) is not None and units.dim() > 1:
            self._note(f"dormant/{name}", lambda: dormant_share(_rows(units)))

    @torch.no_grad()
    def _note(self, sign: str, measure: Callable[[], torch.Tensor]) -> None:
        """Measure; of several layers in a block, the one with the most dormant units counts."""
        if self.reason is not None:
            return
        try:
            value = measure()
        except Exception as error:  # a training must not end by what looks at it
            self.reason = f"measuring {sign} failed: {type(error).__name__}: {error}"
            return
        held = self._measured.get(sign)
        self._measured[sign] = value if held is None else torch.maximum(held, value)

    def _end(self, *unused: object) -> None:
        """End the measurement with the forward pass, also if it has raised."""
        self._remove()
        self._attention.leave()
        self._copies = {sign: HostCopy(value) for sign, value in self._measured.items()}
        self._measured = {}

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def dormant_share(rows: torch.Tensor) -> torch.Tensor:
    """Return the share of dormant units. `rows`: float32, samples by units; all-zero layers are dormant as a whole."""
    activity = rows.abs().mean(dim=0)
    return (activity <= DORMANT_SHARE * activity.mean()).float().mean()


def why_compiled(model: torch.nn.Module) -> str | None:
    """Return the reason against hooks if something in this process has been compiled by `torch.compile`, or None."""
    frames: Any = None
    counters = getattr(getattr(getattr(torch, "_dynamo", None), "utils", None), "counters", None)
    if counters is not None:
        frames = counters.get("frames", {}).get("total", 0)
    wrapped = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    if frames or wrapped or hasattr(model, "_orig_mod"):
        return "torch.compile is in use: hooks would become a part of the compiled graph"
    return None


def _is_activation(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith(ACTIVATION_PACKAGES) and kind.__name__ not in NOT_UNITS


def _floating(output: object) -> torch.Tensor | None:
    """Return the first floating-point tensor in an output: of a tuple, a mapping, or an output of Transformers."""
    if isinstance(output, torch.Tensor):
        return output.detach() if output.is_floating_point() and output.numel() > 1 else None
    values: Any = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((tensor for value in values if (tensor := _floating(value)) is not None), None)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the first rows in float32; the last dimension is that of the units."""
    return tensor.reshape(-1, tensor.shape[-1])[:MAX_ROWS].float()
