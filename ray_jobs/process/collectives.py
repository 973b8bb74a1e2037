"""Collectives of the boundary on torch.distributed, in a gloo process group of their own.

The group is on the CPU also where training uses NCCL, so that control traffic never waits for a GPU and never mixes
with the training's collectives. All ranks participate in every method that is marked as a collective.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from control_plane.core.boundary import AllGather, AllReduceMin, Broadcast, Effect
from control_plane.core.model.commands import Command

BOUNDARY_TIMEOUT_S = 600.0
"""Timeout of a collective where no watchdog monitors the ranks."""

T = TypeVar("T")

COMMANDS: TypeAdapter[tuple[Command, ...]] = TypeAdapter(tuple[Command, ...])


class Collectives:
    """Collective operations of one rank in the control process group."""

    def __init__(self, timeout_s: float = BOUNDARY_TIMEOUT_S) -> None:
        """Collective. Create the process group; every rank of the training calls this."""
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        # One int64: the size in bytes of the proposal that follows; 0, nearly always, means a quiet boundary.
        self._header = torch.zeros(1, dtype=torch.int64)

    def start_broadcast(self, effect: Broadcast) -> Callable[[], tuple[Command, ...]]:
        """Collective. Start broadcasting the proposal; calling the result waits for it and returns the commands."""
        payload = COMMANDS.dump_json(effect.commands) if effect.commands else b""
        self._header[0] = len(payload)
        work = dist.broadcast(self._header, src=0, group=self._group, async_op=True)

        def finish() -> tuple[Command, ...]:
            work.wait()
            size_bytes = int(self._header.item())
            return self._receive(payload, size_bytes) if size_bytes else ()

        return finish

    def _receive(self, payload: bytes, size_bytes: int) -> tuple[Command, ...]:
        proposal = torch.zeros(size_bytes, dtype=torch.uint8)
        if self.rank == 0:
            proposal = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        dist.broadcast(proposal, src=0, group=self._group)
        # Rank 0 decodes its own bytes too: then every rank holds the very same values.
        return COMMANDS.validate_json(proposal.numpy().tobytes())

    def all_reduce_min(self, value: int) -> int:
        """Collective. Return the least value of all ranks (all-reduce)."""
        least = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
        return int(least.item())

    def all_gather(self, value: T) -> list[T]:
        """Collective. Return every rank's value, in rank order."""
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return cast(list[T], values)

    def all_gather_bytes(self, value: bytes) -> list[bytes]:
        """Collective. Return every rank's value, in rank order; all have the same length. Cheaper than `all_gather`."""
        mine = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        values = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(values, mine, group=self._group)
        return [gathered.numpy().tobytes() for gathered in values]

    def start_gather_floats(self, values: list[float]) -> Callable[[], npt.NDArray[np.float64]]:
        """Collective. Start gathering float64 vectors, of one length on all ranks; calling the result waits for it.

        Returns ranks by elements, in rank order.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        vectors = torch.empty(self.world_size * len(values), dtype=torch.float64)
        work = dist.all_gather_into_tensor(vectors, mine, group=self._group, async_op=True)

        def finish() -> npt.NDArray[np.float64]:
            work.wait()
            return vectors.numpy().reshape(self.world_size, -1)

        return finish

    def all_reasons(self, own: str | None) -> list[str]:
        """Collective. Return the reasons of all ranks that have one, each with the rank; the same on all."""
        return [f"rank {rank}: {reason}" for rank, reason in enumerate(self.all_gather(own)) if reason]

    def first_reason(self, own: str | None) -> str | None:
        """Collective. Return the reason of the first rank that has one, or None; the same on all."""
        return next((reason for reason in self.all_gather(own) if reason), None)

    def broadcast_json(self, value: object) -> Any:
        """Collective. Return rank 0's value, sent as JSON."""
        box = [json.dumps(value) if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return json.loads(str(box[0]))

    def barrier(self) -> None:
        """Collective. Wait for every rank."""
        dist.barrier(group=self._group)

    def perform(self, effect: Effect) -> Any:
        """Carry out one collective effect, and wait for it."""
        match effect:
            case Broadcast():
                return self.start_broadcast(effect)()
            case AllReduceMin(value):
                return self.all_reduce_min(value)
            case AllGather(value):
                return self.all_gather(value)
        raise TypeError(f"{effect!r} is not a collective effect")
