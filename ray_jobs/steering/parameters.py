"""Commands on parameters: reset modules to fresh weights, freeze (see `frozen`), list the layer tree.

    register_parameter_appliers(session, training)    freeze, unfreeze, reset_parameters
    layers(model)                                     the modules, as plain JSON

Fresh weights follow from the seed and the module's name alone. They are drawn on the CPU in fp32, in full on every
rank, so that they depend neither on the number of ranks nor on a device; then each rank writes what it holds of them,
into the live model and into the master weights, and zeroes the moments. No collectives.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import ResetParameters
from control_plane.core.model.records import Readback
from ray_jobs.process import deepspeed_internals
from ray_jobs.process.deepspeed_internals import elements, shape_of
from ray_jobs.steering.appliers import random_state_kept
from ray_jobs.steering.freezing import FreezeApplier, listed, matches, some
from ray_jobs.steering.partitions import WEIGHTS, Partitions, Tensors

if TYPE_CHECKING:
    from ray_jobs.rank.live_training import LiveTraining
    from ray_jobs.rank.session import RankSession


def register_parameter_appliers(session: "RankSession", training: "LiveTraining") -> None:
    """Register the appliers of `freeze`, `unfreeze` and `reset_parameters`. The engine must have been built."""
    freezing = FreezeApplier(training.frozen)
    session.register("freeze", freezing)
    session.register("unfreeze", freezing)
    session.register("reset_parameters", ResetApplier(training.partitions))


class Skeleton:
    """Copy of a model on the meta device: the same modules, whose parameters have shapes and no values.

    In it, modules are given fresh weights as when the model was built: by their own `reset_parameters`, then by the
    model's `_init_weights`, for the module itself and for those around it (GPT-2 scales a layer from its parent).
    Buffers, like BatchNorm's running means, are no weights and stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._root = _without_weights(model)

    def can_reset(self, name: str) -> bool:
        """Return whether the module has parameters of its own, and can initialize all of them."""
        module = self._root.get_submodule(name)
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if not own or not all(parameter.is_floating_point() for parameter in own):
            return False
        if callable(getattr(module, "reset_parameters", None)):
            return True
        versions = [parameter._version for parameter in own]
        try:
            self._initialize(name)
        except (AttributeError, TypeError, RuntimeError, NotImplementedError):
            return False  # what cannot be tried without values is not done with them
        return all(parameter._version > before for parameter, before in zip(own, versions, strict=True))

    def fresh(self, name: str, seed: int) -> Tensors:
        """Draw full fp32 weights on the CPU for a module's own parameters, by their names in it.

        Raises `RuntimeError` if one of them was not initialized.
        """
        module = self._root.get_submodule(name)
        shapes = dict(module._parameters)
        drawn = {key: _unset(parameter) for key, parameter in shapes.items() if parameter is not None}
        module._parameters.update(drawn)
        try:
            with random_state_kept():
                _seed(f"{seed}:{name}")
                self._initialize(name)
        finally:
            module._parameters.update(shapes)
        if missing := [key for key, parameter in drawn.items() if bool(parameter.isnan().any())]:
            raise RuntimeError(f"nothing gives fresh values to {missing[0]} of {name}")
        return {key: parameter.detach() for key, parameter in drawn.items()}

    def _initialize(self, name: str) -> None:
        parts = name.split(".") if name else []
        around = [self._root.get_submodule(".".join(parts[:size])) for size in range(len(parts), -1, -1)]
        with torch.no_grad():
            if callable(reset := getattr(around[0], "reset_parameters", None)):
                reset()
            for index, module in enumerate(around):
                initialize = next(filter(None, map(_initializer, around[index:])), None)
                if initialize is not None:
                    initialize(module)


def _initializer(module: nn.Module) -> Callable[[nn.Module], Any] | None:
    """Return Transformers' `_init_weights(module)`, or None if the model has none, or another function of that name."""
    method = getattr(module, "_init_weights", None)
    return method if callable(method) and len(inspect.signature(method).parameters) == 1 else None


def _without_weights(module: nn.Module) -> nn.Module:
    # Not copied: building a module would draw weights, and DeepSpeed's tensors do not like to be copied.
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_parameters"] = {
        key: None if part is None else nn.Parameter(_empty(shape_of(part), part.dtype), requires_grad=False)
        for key, part in dict.items(module._parameters)
    }
    twin.__dict__["_buffers"] = {
        key: None if part is None else _empty(part.shape, part.dtype) for key, part in module._buffers.items()
    }
    twin.__dict__["_modules"] = {
        key: None if part is None else _without_weights(part) for key, part in module._modules.items()
    }
    return twin


def _empty(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _unset(shape: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.full(shape.shape, math.nan, dtype=torch.float32, device="cpu"), requires_grad=False)


def _seed(text: str) -> None:
    """Seed every generator that an initialization on the CPU may draw from. The caller restores their states."""
    import random

    import numpy

    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    torch.default_generator.manual_seed(number >> 1)
    random.seed(number)
    numpy.random.seed(number % 2**32)


class ResetApplier:
    """Applier of `reset_parameters`. Adam's step count is kept, because under ZeRO parameters share it."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions, self._model = partitions, partitions.model
        self._overwritten: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._forgets = False

    def check(self, command: Command) -> str | None:
        """Reject patterns without a module that can be reset, and parameters that are not trained."""
        if reason := self._partitions.reason_not_writable():
            return reason
        names = self._resettable(_intent(command).modules)
        if not names:
            pattern, known = _intent(command).modules, self._resettable("*")
            return f"no module that matches {pattern!r} can be given fresh weights; of this model {some(known)} can"
        for name in names:
            for key, parameter in self._own(name).items():
                if not parameter.requires_grad:
                    return f"{name}.{key} is not trained by this run, so it has no master weights that can be replaced"
                self._partitions.of(parameter)
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Write and read back. Raises `RuntimeError` if a module is not initialized, or a readback differs.

        A copy of the old weights and moments is held for `undo`, until the next step.
        """
        self._forget_before_steps()
        names, seed = self._resettable(_intent(command).modules), _intent(command).seed
        skeleton, digest = Skeleton(self._model), hashlib.sha256()
        done: set[int] = set()
        for name in names:
            own = self._own(name)
            for key, value in skeleton.fresh(name, seed).items():
                if id(own[key]) not in done:  # tied weights are reset once, as those of the first module
                    done.add(id(own[key]))
                    self._replace(own[key], value)
                    digest.update(f"{name}.{key}\0{tuple(value.shape)}\0".encode())
                    digest.update(value.contiguous().numpy().data)
        deepspeed_internals.invalidate_secondary(self._partitions.engine)
        return Applied(before={}, after={"reset": listed(names), "digest": digest.hexdigest()})

    def undo(self, command: Command) -> None:
        """Restore weights and moments, bit for bit."""
        for tensor, old in reversed(self._overwritten):
            tensor.copy_(old)
        self._overwritten = []
        deepspeed_internals.invalidate_secondary(self._partitions.engine)

    def _resettable(self, pattern: str) -> list[str]:
        """Return the matching modules that can be reset, in the model's order."""
        skeleton = Skeleton(self._model)
        named = [name for name, _ in self._model.named_modules() if matches(name, pattern)]
        with random_state_kept():
            return [name for name in named if skeleton.can_reset(name)]

    def _own(self, name: str) -> dict[str, nn.Parameter]:
        module = self._model.get_submodule(name)
        # `dict.items`: under ZeRO 3, asking DeepSpeed's own dictionary for a parameter may gather it.
        return {key: parameter for key, parameter in dict.items(module._parameters) if parameter is not None}

    def _replace(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Write this rank's partition of the fresh value into master weights, moments and live model."""
        flat, partition = value.reshape(-1), self._partitions.of(parameter)
        if partition is not None:
            tensors = partition.tensors(self._partitions.torch_optimizer)
            self._write(tensors.pop(WEIGHTS), flat[partition.first : partition.first + partition.size])
            for moments in tensors.values():
                self._write(moments, torch.zeros(moments.numel()))
        if partition is None or partition.owner is not parameter:
            self._replace_live(parameter, flat)

    def _replace_live(self, parameter: nn.Parameter, flat: torch.Tensor) -> None:
        if not deepspeed_internals.is_partitioned(parameter):
            self._write(parameter.detach(), flat)
            return
        part = deepspeed_internals.held_tensors(parameter)[0]
        first = deepspeed_internals.partition_rank(self._partitions.optimizer, parameter) * part.numel()
        self._write(part.detach(), flat[first : first + part.numel()])
        if parameter.numel() == flat.numel():  # small ones may be here in full between two steps
            self._write(parameter.detach(), flat)

    def _write(self, target: torch.Tensor, value: torch.Tensor) -> None:
        if value.numel() < target.numel():  # what is left is padding behind the parameter's end
            target = target.narrow(0, 0, value.numel())
        new = value.reshape(target.shape).to(target.device, target.dtype)
        self._overwritten.append((target, target.clone()))
        target.copy_(new)
        if not torch.equal(target, new):
            raise RuntimeError("fresh weights were written, and other values are read")

    def _forget_before_steps(self) -> None:
        self._overwritten = []
        if not self._forgets:
            self._forgets = True
            # It stays: torch does not like it if a hook removes itself.
            self._partitions.torch_optimizer.register_step_pre_hook(lambda *_: self._overwritten.clear())


def _intent(command: Command) -> ResetParameters:
    assert isinstance(command.intent, ResetParameters)
    return command.intent


def layers(model: nn.Module, frozen: Collection[str] = ()) -> list[Readback]:
    """Return every module, outer before inner, as plain JSON.

    `name` ("" is the model itself), `type`, `parameters` and `trainable` (elements in it and in what it holds, all and
    those that change in training, `frozen` names being left out), `tunables` (numbers that the module itself holds).
    Under ZeRO 3 whole parameters are counted.
    """
    still = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in frozen}
    return [_layer(name, module, still) for name, module in model.named_modules()]


def _layer(name: str, module: nn.Module, still: set[int]) -> Readback:
    counts = [
        (elements(parameter), parameter.requires_grad and id(parameter) not in still)
        for parameter in module.parameters()
    ]
    return {
        "name": name,
        "type": type(module).__name__,
        "parameters": sum(count for count, _ in counts),
        "trainable": sum(count for count, trains in counts if trains),
        "tunables": {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, float) and math.isfinite(value) and not key.startswith("_")
        },
    }
