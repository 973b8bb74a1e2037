"""Copies of tensors in reusable host memory buffers.

The first touch of new memory takes several times as long as the copy itself. So the buffers of one checkpoint are
reused for the next.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

ALIGNMENT_BYTES = 64
"""Segments begin at multiples of it, so that a view of any dtype can begin where its original did."""

HUGE_PAGES_FROM_BYTES = 4 << 20
"""From here on a buffer asks for huge pages: the first touch then takes a fraction of the time."""


class HostBuffers:
    """Pool of host buffers of exact sizes, which keeps their memory from one checkpoint to the next."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
        self._lent: list[tuple[tuple[int, bool], torch.Tensor]] = []

    def lend(self, size_bytes: int, pinned: bool) -> torch.Tensor:
        """Return a uint8 buffer with undefined content."""
        kind = (size_bytes, pinned)
        free = self._free[kind]
        buffer = free.pop() if free else _new_buffer(size_bytes, pinned)
        self._lent.append((kind, buffer))
        return buffer

    def take_back(self) -> None:
        """Return all lent buffers to the pool."""
        for kind, buffer in self._lent:
            self._free[kind].append(buffer)
        self._lent.clear()

    def forget_unused(self) -> None:
        """Free the buffers that were not lent since `take_back`."""
        self._free.clear()

    @property
    def size_bytes(self) -> int:
        """Size of all buffers, lent or not."""
        free_bytes = sum(size * len(buffers) for (size, _), buffers in self._free.items())
        return free_bytes + sum(size for (size, _), _ in self._lent)


def _new_buffer(size_bytes: int, pinned: bool) -> torch.Tensor:
    if pinned:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    if size_bytes < HUGE_PAGES_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


@dataclass(slots=True)
class _Segment:
    """Contiguous bytes of a storage that tensors cover. `members` are indices into the list of tensors."""

    begin: int
    end: int
    members: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A copy of bytes that is still to be made: both are uint8, of one size."""

    source: torch.Tensor
    buffer: torch.Tensor

    def make(self) -> None:
        """Copy. From a GPU that is asynchronous: the caller must synchronize."""
        self.buffer.copy_(self.source, non_blocking=True)


def make_copies(copies: Iterable[Copy]) -> None:
    """Copy, and wait until it is done."""
    for copy in copies:
        copy.make()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def laid_out(tensors: Sequence[torch.Tensor], buffers: HostBuffers) -> tuple[list[torch.Tensor], list[Copy]]:
    """Return tensors in host memory with the same shapes, strides and sharing, and the copies that fill them.

    Of a storage, only the bytes that tensors cover are copied. Tensors that are not dense are copied at once.
    """
    copies: list[Copy] = []
    by_storage: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    out: list[torch.Tensor] = [tensor.detach() for tensor in tensors]
    for place, tensor in enumerate(tensors):
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        if _is_dense(tensor):
            # By dtype too: `torch.save` refuses a storage that is seen through two of them.
            by_storage[(tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype)].append(place)
        else:
            out[place] = tensor.detach().to("cpu", copy=True)
    for places in by_storage.values():
        for segment in _segments(tensors, places):
            copies.append(_laid_out_segment(tensors, segment, buffers, out))
    return out, copies


def _is_dense(tensor: torch.Tensor) -> bool:
    own = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return own and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the range of bytes of its storage that a tensor covers, the end excluded."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * tensor.itemsize
    return begin, begin + (int(last) + 1) * tensor.itemsize


def _segments(tensors: Sequence[torch.Tensor], places: Sequence[int]) -> list[_Segment]:
    segments: list[_Segment] = []
    for place in sorted(places, key=lambda place: _extent(tensors[place])):
        begin, end = _extent(tensors[place])
        begin -= begin % ALIGNMENT_BYTES
        if not segments or begin > segments[-1].end:
            segments.append(_Segment(begin, end))
        segments[-1].end = max(segments[-1].end, end)
        segments[-1].members.append(place)
    return segments


def _laid_out_segment(
    tensors: Sequence[torch.Tensor], segment: _Segment, buffers: HostBuffers, out: list[torch.Tensor]
) -> Copy:
    storage = tensors[segment.members[0]].untyped_storage()
    size_bytes = segment.end - segment.begin
    source = torch.empty(0, dtype=torch.uint8, device=storage.device)
    source.set_(storage, segment.begin, (size_bytes,), (1,))
    buffer = buffers.lend(size_bytes, pinned=storage.device.type == "cuda")
    for place in segment.members:
        tensor = tensors[place]
        offset = tensor.storage_offset() - segment.begin // tensor.itemsize
        view = torch.empty(0, dtype=tensor.dtype)
        out[place] = view.set_(buffer.untyped_storage(), offset, tensor.shape, tensor.stride())
    return Copy(source, buffer)
