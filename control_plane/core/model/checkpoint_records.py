"""What the journal may hold about the ranks' state: checkpoints, kept, gone or failed, and digests."""

from typing import Literal
from uuid import UUID

from control_plane.core.model.intents import CheckpointName, Words

MAIN = "main"
"""The branch with which every run begins."""


class CheckpointCommitted(Words):
    """A checkpoint exists: its manifest is in place and every shard is durable. `path` is relative to the run.

    `training` is which of the script's trainings it is of, by the order of its calls of `train()`, from 1.
    `decided_here` are the commands that were decided at the boundary of `step` before it was saved.
    """

    type: Literal["CheckpointCommitted"] = "CheckpointCommitted"
    checkpoint: CheckpointName
    step: int
    generation: int
    path: str
    label: str | None = None
    note: str | None = None
    pinned: bool = False
    size_bytes: int = 0
    world_size: int = 0
    metrics: dict[str, float] = {}
    manifest_sha256: str = ""
    branch: str = MAIN
    training: int = 1
    decided_here: tuple[UUID, ...] = ()


class CheckpointPinned(Words):
    """A checkpoint is kept whatever the retention says, or, if not `pinned`, no longer."""

    type: Literal["CheckpointPinned"] = "CheckpointPinned"
    checkpoint: CheckpointName
    pinned: bool


class CheckpointFailed(Words):
    """A save that was begun came to nothing. Training went on."""

    type: Literal["CheckpointFailed"] = "CheckpointFailed"
    checkpoint: CheckpointName
    step: int
    generation: int
    reason: str


class CheckpointDiscarded(Words):
    """A checkpoint may no longer be used; its files are being removed."""

    type: Literal["CheckpointDiscarded"] = "CheckpointDiscarded"
    checkpoint: CheckpointName
    reason: str


class StateDigested(Words):
    """What every rank had live after step `step`, as a digest for each rank, in rank order.

    `samples` is the digest of the ids of the step's global batch. Which part of a rank's state a digest came from
    is in the rank's own file, see `storage.digest_files`.
    """

    type: Literal["StateDigested"] = "StateDigested"
    generation: int
    step: int
    ranks: tuple[str, ...]
    samples: str
    algorithm: str = "xxh3_128"
