"""Journal records of checkpoints (committed, pinned, failed, discarded) and of state digests."""

from typing import Literal
from uuid import UUID

from control_plane.core.model.health import Trust
from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAIN, CheckpointName


class CheckpointCommitted(Message):
    """A checkpoint was committed: its manifest is in place and every shard is durable. `path` is relative to the run.

    `training` numbers the script's calls of `train()`, from 1. `decided_here`: the commands decided at the boundary
    after `step` before the save. `health`: what the checks of the training said when it was saved, and
    `health_reasons` why it is not trusted: kinds of alerts, or why the checks could not tell.
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
    health: Trust = "unknown"
    health_reasons: tuple[str, ...] = ()


class CheckpointPinned(Message):
    """A checkpoint was pinned (exempt from retention) or unpinned."""

    type: Literal["CheckpointPinned"] = "CheckpointPinned"
    checkpoint: CheckpointName
    pinned: bool


class CheckpointFailed(Message):
    """A save failed. Training went on."""

    type: Literal["CheckpointFailed"] = "CheckpointFailed"
    checkpoint: CheckpointName
    step: int
    generation: int
    reason: str


class CheckpointDiscarded(Message):
    """A checkpoint was discarded: it may no longer be used, and its files are being removed."""

    type: Literal["CheckpointDiscarded"] = "CheckpointDiscarded"
    checkpoint: CheckpointName
    reason: str


class StateDigested(Message):
    """The live state of every rank was digested after step `step`; one digest per rank, in rank order.

    `samples` is the digest of the ids of the step's global batch. Digests of the parts of a rank's state are in the
    rank's own file, see `storage.digest_files`.
    """

    type: Literal["StateDigested"] = "StateDigested"
    generation: int
    step: int
    ranks: tuple[str, ...]
    samples: str
    algorithm: str = "xxh3_128"
