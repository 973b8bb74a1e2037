"""Short digests of live tensors and plain values, fast enough to be taken while training goes on.

Every bit counts: two zeros, two NaNs and two shapes of the same bytes are different. Memory on the host is hashed
where it lies; a GPU's comes to pinned host memory in pieces, one on its way while the one before is hashed.
"""

from collections.abc import Iterator
from functools import cache
from math import isfinite
from typing import Any

import torch
import xxhash

from ray_jobs.checkpoint.capture import canonical
from ray_jobs.checkpoint.host_memory import HostBuffers

STAGE_BYTES = 16 << 20
"""A piece of a GPU's tensor: large enough for the bus to be fast, small enough to stay in the processor's cache."""


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Return the digest of tensors: types, shapes and bytes, on any device and with any strides."""
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(f"T{tensor.dtype}{tuple(tensor.shape)}".encode())
        for block in _blocks(tensor):
            digest.update(block)
    return str(digest.hexdigest())


def value_digest(value: object) -> str:
    """Return the digest of plain values and containers, independent of the order of dictionaries."""
    digest = xxhash.xxh3_128()
    for block in canonical(value):
        digest.update(block)
    return str(digest.hexdigest())


def number_digest(value: object) -> str:
    """Return the digest of a number that may be a tensor or a plain number, as Adam's step is."""
    plain = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(plain, int | float) and isfinite(plain) and float(plain) == plain:
        return value_digest(float(plain))
    return tensor_digest(value) if isinstance(value, torch.Tensor) else value_digest(value)


def _blocks(tensor: torch.Tensor) -> Iterator[Any]:
    """Yield the tensor's bytes in index order. Raises `RuntimeError` on the meta device."""
    if tensor.device.type == "meta":
        raise RuntimeError("a tensor on the device 'meta' holds nothing that could be digested")
    plain = tensor.detach()
    plain = plain.to_dense() if plain.layout != torch.strided else plain.resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cuda":
        yield from staged(flat, STAGE_BYTES)
    else:
        yield flat.cpu().numpy().data


def staged(flat: torch.Tensor, stage_bytes: int) -> Iterator[Any]:
    """Yield a device tensor's bytes through two alternating host buffers. A block is valid until the next one."""
    coming = None
    for number, piece in enumerate(flat.split(stage_bytes)):
        stage = _stages(stage_bytes, flat.is_cuda)[number % 2][: piece.numel()]
        stage.copy_(piece, non_blocking=True)
        arrived = torch.cuda.Event() if flat.is_cuda else None
        if arrived is not None:
            arrived.record(torch.cuda.current_stream(flat.device))
        if coming is not None:
            yield _arrived(*coming)
        coming = stage, arrived
    if coming is not None:
        yield _arrived(*coming)


def _arrived(stage: torch.Tensor, event: torch.cuda.Event | None) -> Any:
    if event is not None:
        event.synchronize()
    return stage.numpy().data


@cache
def _stages(stage_bytes: int, pinned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    buffers = HostBuffers()
    return buffers.lend(stage_bytes, pinned), buffers.lend(stage_bytes, pinned)
