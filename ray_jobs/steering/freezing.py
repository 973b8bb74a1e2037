"""Frozen parameters: weights and optimizer moments that do not change from the next step on.

    frozen = FrozenParameters(Partitions(model, optimizer, engine))
    frozen.hold({"transformer.wte.weight"})

`requires_grad=False` cannot be used: DeepSpeed has built its flat partitions and counts its gradients, and AdamW's
decay and momentum move weights whose gradient is zero. So a frozen parameter stays an ordinary one, except:

- its gradient is zeroed before it is reduced, so that it counts neither in the gradient norm nor in clipping;
- right before the optimizer steps, this rank's partition of the master weights and moments is copied, and right after,
  before the weights are read, it is restored.

While the step is made that copy takes memory: with AdamW 12 bytes for each frozen element of this rank's share. Adam's
count of steps goes on, because under ZeRO parameters share it. While nothing is frozen there is no hook at all.
"""

import functools
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

import torch
from torch.utils.hooks import RemovableHandle

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Diverged
from control_plane.core.model.intents import Freeze, Unfreeze
from control_plane.core.model.records import Readback
from ray_jobs.process.deepspeed_internals import elements
from ray_jobs.steering.partitions import Partition, Partitions, Tensors

MAX_NAMES_LISTED = 64
"""Names in a reading, which is journalled: a command may freeze thousands of parameters."""

EXAMPLES = 4


class FrozenParameters:
    """Set of frozen parameters on this rank, by name. Local: every rank must set the same."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._parameters = trained_parameters(partitions.model)
        self._frozen: dict[str, RemovableHandle] = {}  # each with the hook on its gradient
        self._located_by_owner: dict[int, list[Partition]] = {}  # by id of the tensor that is stepped
        self._hooks: list[RemovableHandle] = []
        self._kept: list[tuple[Partition, Tensors]] = []

    @property
    def names(self) -> list[str]:
        """Names of the frozen parameters, sorted."""
        return sorted(self._frozen)

    @property
    def trained(self) -> list[str]:
        """Names of all trained parameters, frozen or not, in the model's order."""
        return list(self._parameters)

    def matching(self, pattern: str) -> set[str]:
        """Return the trained parameters whose name matches; of a tied one, the model's first name."""
        named = self._partitions.model.named_parameters(remove_duplicate=False)
        first = {id(parameter): name for name, parameter in self._parameters.items()}
        return {first[id(one)] for name, one in named if id(one) in first and matches(name, pattern)}

    def readings(self) -> Readback:
        """Return `frozen` (names, at most 64 and then how many more) and `frozen_parameters` (elements)."""
        count = sum(elements(self._parameters[name]) for name in self._frozen)
        return {"frozen": listed(self.names), "frozen_parameters": count}

    def hold(self, names: Collection[str]) -> None:
        """Freeze exactly these, from the next step on. Raises `LookupError` and changes nothing if one cannot be."""
        located = self._located(names)
        for name in self._frozen.keys() - set(names):
            self._frozen.pop(name).remove()
        for name in set(names) - self._frozen.keys():
            self._frozen[name] = self._parameters[name].register_hook(torch.zeros_like)
        self._located_by_owner = located
        self._hook(bool(located))

    def reason_against(self, names: Collection[str]) -> str | None:
        """Return the reason why these cannot be frozen, or None."""
        if reason := self._partitions.reason_not_writable():
            return reason
        try:
            self._located(names)
        except LookupError as error:
            return str(error)
        return None

    def memory(self) -> list[str]:
        """Return the frozen names for a checkpoint."""
        return self.names

    def recall(self, memory: Iterable[str]) -> None:
        """Freeze what `memory` lists. Raises `Diverged` if this model lacks a parameter."""
        try:
            self.hold(set(memory))
        except LookupError as error:
            raise Diverged(f"a parameter was frozen that cannot be: {error}") from None

    def _located(self, names: Collection[str]) -> dict[int, list[Partition]]:
        located: dict[int, list[Partition]] = {}
        for name in names:
            if name not in self._parameters:
                raise LookupError(f"this run trains no parameter {name}")
            try:
                partition = self._partitions.of(self._parameters[name])
            except LookupError as error:
                raise LookupError(f"{name}: {error}") from None
            if partition is not None:
                located.setdefault(id(partition.owner), []).append(partition)
        return located

    def _hook(self, wanted: bool) -> None:
        if wanted and not self._hooks:
            # Two arguments more than are used: torch gives a hook those of `step`.
            optimizer = self._partitions.torch_optimizer
            self._hooks = [
                optimizer.register_step_pre_hook(lambda optimizer, *_: self._keep(optimizer)),
                optimizer.register_step_post_hook(lambda optimizer, *_: self._put_back(optimizer)),
            ]
        elif not wanted:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the frozen partitions before a step. DeepSpeed calls `step` once for each flat tensor."""
        stepped = [owner for group in optimizer.param_groups for owner in group["params"]]
        self._kept = [
            (partition, {key: tensor.clone() for key, tensor in partition.tensors(optimizer).items()})
            for owner in stepped
            for partition in self._located_by_owner.get(id(owner), ())
        ]

    def _put_back(self, optimizer: torch.optim.Optimizer) -> None:
        for partition, kept in self._kept:
            for key, live in partition.tensors(optimizer).items():
                if key in kept:
                    live.copy_(kept[key])
                else:
                    live.zero_()  # a moment that this very step, the first of all, has brought into being
        self._kept = []


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters by name; a tied one once, by the first of its names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a glob pattern, case-sensitively; a name always matches itself."""
    return name == pattern or fnmatchcase(name, pattern)


def listed(names: Collection[str]) -> list[str]:
    """Return sorted names, at most 64, and then how many more there are."""
    more = len(names) - MAX_NAMES_LISTED
    return sorted(names)[:MAX_NAMES_LISTED] + ([f"and {more} more"] if more > 0 else [])


def some(names: Collection[str]) -> str:
    """Return a few of many names, for a message."""
    few, more = ", ".join(list(names)[:EXAMPLES]), len(names) - EXAMPLES
    return (few or "none") + (f" and {more} more" if more > 0 else "")


class FreezeApplier:
    """Applier of `freeze` and `unfreeze`."""

    def __init__(self, frozen: FrozenParameters) -> None:
        self._frozen = frozen
        self._undo: Callable[[], None] = lambda: None

    def check(self, command: Command) -> str | None:
        """Reject patterns that match nothing, and runs whose weights cannot be frozen."""
        pattern, names = self._found(command)
        if isinstance(command.intent, Unfreeze):
            frozen = self._frozen.names
            return None if names else f"no frozen parameter matches {pattern!r}; frozen: {some(frozen)}"
        if not names:
            return f"this run trains no parameter that matches {pattern!r}; it trains {some(self._frozen.trained)}"
        return self._frozen.reason_against(names)

    def apply(self, command: Command, step: int) -> Applied:
        """Freeze or unfreeze from the next step on. Raises `LookupError` if the optimizer lacks a parameter."""
        _, found = self._found(command)
        names, before = set(self._frozen.names), self._frozen.readings()
        self._undo = functools.partial(self._frozen.hold, names)
        self._frozen.hold(names - found if isinstance(command.intent, Unfreeze) else names | found)
        return Applied(before, self._frozen.readings())

    def undo(self, command: Command) -> None:
        """Restore the frozen set before the last `apply`."""
        self._undo()

    def _found(self, command: Command) -> tuple[str, set[str]]:
        assert isinstance(command.intent, Freeze | Unfreeze)
        pattern = command.intent.parameters
        names = self._frozen.matching(pattern)
        return pattern, names & set(self._frozen.names) if isinstance(command.intent, Unfreeze) else names
