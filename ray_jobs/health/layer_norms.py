"""Norms of weights, gradients and updates by group of layers, from what this rank's optimizer steps.

    norms = LayerNorms(partitions, layer_groups(model), rank)
    norms.arm()                 before a step that is to be measured
    sums = norms.take()         at the boundary after it; None if the optimizer did not step

Hooks stand on torch's optimizer for the measured step only: before it gradients and weights are read, after it the
change of the weights. They read, and write nothing.

    plain, DDP, ZeRO 0   every rank holds everything: rank 0 measures, the others add nothing
    ZeRO 1, 2, 3         each rank measures its own partitions; the sum over the ranks is the whole

Weight and gradient norms are exact, up to rounding in float32, in every stage. The update's is exact for partitions of
up to `MAX_KEPT` elements; of a larger one every k-th element is kept and stands for its neighbours: a copy of the
weights would not fit into the memory of a training that fills its device.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.hooks import RemovableHandle

from ray_jobs.health.device_values import HostCopy
from ray_jobs.health.vector import LayerSums
from ray_jobs.steering.partitions import Partition, Partitions

log = logging.getLogger(__name__)

MAX_KEPT = 1 << 16
"""Elements of a partition whose values before the step are kept."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Range of a stepped tensor that belongs to one group of layers."""

    group: int
    start: int
    size: int
    is_whole: bool

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the range, flat where it is a part."""
        return tensor if self.is_whole else tensor.narrow(0, self.start, self.size)

    @property
    def stride(self) -> int:
        """Distance of kept elements: odd, so that it does not always meet the same column of a matrix."""
        return 1 if self.size <= MAX_KEPT else -(-self.size // MAX_KEPT) | 1

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the elements whose change is measured."""
        own = self.of(tensor)
        return own if self.stride == 1 else own.reshape(-1)[:: self.stride]


class LayerNorms:
    """Norms by group of this rank. `reason`: why they cannot be measured here, or None."""

    def __init__(self, partitions: Partitions, groups: Mapping[str, Sequence[torch.Tensor]], rank: int) -> None:
        self._partitions, self._count = partitions, len(groups)
        self._spans: dict[int, list[_Span]] = {}
        self._handles: list[RemovableHandle] = []
        self._before: list[tuple[torch.Tensor, _Span, torch.Tensor]] = []
        self._sums: torch.Tensor | None = None
        self.reason = partitions.reason_not_writable()
        if self.reason is None:
            self._locate(list(groups.values()), rank)

    def _locate(self, groups: Sequence[Sequence[torch.Tensor]], rank: int) -> None:
        for index, parameters in enumerate(groups):
            for parameter in parameters:
                try:
                    partition = self._partitions.of(parameter)
                except LookupError:
                    continue  # no optimizer steps it
                if partition is not None and (rank == 0 or partition.owner is not parameter):
                    self._add(partition, index)
        for owner, spans in self._spans.items():
            self._spans[owner] = _joined(spans)

    def _add(self, partition: Partition, group: int) -> None:
        is_whole = partition.size == partition.owner.numel()
        span = _Span(group, partition.start, partition.size, is_whole)
        self._spans.setdefault(id(partition.owner), []).append(span)

    def arm(self) -> None:
        """Measure the coming step of the optimizer."""
        self.disarm()
        if self.reason is not None:
            return
        optimizer = self._partitions.torch_optimizer
        self._handles = [
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._note_before(optimizer)),
            optimizer.register_step_post_hook(lambda optimizer, *_: self._note_after()),
        ]

    def disarm(self) -> None:
        """Remove the hooks, and forget what they have noted."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before, self._sums = [], [], None

    def take(self) -> HostCopy | None:
        """Return the sums of squares, on their way to host memory, and remove the hooks; None without a step."""
        sums = self._sums
        self.disarm()
        if sums is None:
            return None
        return HostCopy(sums)

    def sums_of(self, values: Sequence[float]) -> LayerSums:
        """Return what `take` has copied, by kind."""
        count = self._count
        return LayerSums(values[:count], values[count : 2 * count], values[2 * count :])

    @torch.no_grad()
    def _note_before(self, optimizer: torch.optim.Optimizer) -> None:
        """Read weights and gradients. DeepSpeed calls `step` once for each flat tensor."""
        stepped = [owner for group in optimizer.param_groups for owner in group["params"]]
        found = [(owner, span) for owner in stepped for span in self._spans.get(id(owner), ())]
        self._before = [(owner, span, span.kept(owner.detach()).clone()) for owner, span in found]
        weights = [(span.group, span.of(owner.detach())) for owner, span in found]
        gradients = [(span.group, span.of(owner.grad)) for owner, span in found if owner.grad is not None]
        self._collect(0, weights)
        self._collect(1, gradients)
        if self._sums is None:  # a rank that owns nothing has measured that
            self._sums = torch.zeros(3 * self._count, dtype=torch.float64)

    @torch.no_grad()
    def _note_after(self) -> None:
        changes = [(span.group, span.kept(owner.detach()) - kept, span) for owner, span, kept in self._before]
        # What was left out is as large, on average, as what was kept.
        factors = [span.size / change.numel() for _, change, span in changes]
        self._collect(2, [(group, change) for group, change, _ in changes], factors)
        self._before = []

    def _collect(
        self, kind: int, tensors: list[tuple[int, torch.Tensor]], factors: Sequence[float] | None = None
    ) -> None:
        """Add the squares of the tensors' norms to their groups, on their device and in one batch."""
        for device in {tensor.device for _, tensor in tensors}:
            chosen = [at for at, (_, tensor) in enumerate(tensors) if tensor.device == device]
            norms = torch._foreach_norm([tensors[at][1] for at in chosen], 2, dtype=torch.float32)
            squares = torch.stack(list(norms)).double().square()
            if factors is not None and any(factors[at] != 1 for at in chosen):
                squares = squares * torch.tensor([factors[at] for at in chosen], dtype=torch.float64).to(device)
            places = torch.tensor([kind * self._count + tensors[at][0] for at in chosen]).to(device, non_blocking=True)
            if self._sums is None:
                self._sums = torch.zeros(3 * self._count, dtype=torch.float64, device=device)
            self._sums.index_add_(0, places.to(self._sums.device), squares.to(self._sums.device))


def _joined(spans: list[_Span]) -> list[_Span]:
    """Return the ranges with neighbours of one group made one: a flat tensor holds a block's parameters in a row."""
    joined: list[_Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        last = joined[-1] if joined else None
        if last is not None and last.group == span.group and last.start + last.size == span.start and not span.is_whole:
            joined[-1] = _Span(span.group, last.start, last.size + span.size, False)
        else:
            joined.append(span)
    return joined
