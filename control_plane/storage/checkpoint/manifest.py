"""Manifest of a checkpoint, and its canonical serialization.

A manifest has exactly one serialization: a file with the same content in other bytes was not written by `commit`.
"""

import json
import math
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from control_plane.core.model.errors import Invalid
from control_plane.core.model.intent_base import Message

MANIFEST = "manifest.json"
FORMAT = 2

MAX_MANIFEST_BYTES = 64 * 2**20
"""16,384 ranks with three shards each and their digests fit twice over."""


class Shard(Message):
    """One file of a checkpoint. `path` is relative to the checkpoint's folder, with `/` between its parts."""

    path: str
    rank: int
    size_bytes: int
    sha256: str


class RankState(Message):
    """Digests of one rank's live state and random generators, to be compared after a restore."""

    rank: int
    state_sha256: str
    random_sha256: str


class Manifest(Message):
    """Manifest of a checkpoint: its shards, its origin, and the state that it contains."""

    format: Literal[2] = 2
    checkpoint: str
    run: str
    branch: str = "main"
    training: int = Field(default=1, description="which training of the script, by the order of its calls of train()")
    generation: int
    step: int
    world_size: int
    kind: Literal["saved", "universal"] = "saved"
    converted_from: str | None = None
    label: str | None = None
    pinned: bool = False
    shards: tuple[Shard, ...]
    ranks: tuple[RankState, ...] = ()
    samples_consumed: int
    global_batch_samples: int = 0
    accumulation_steps: int = 1
    knobs: dict[str, Any] = {}
    settled: tuple[str, ...] = Field(default=(), description="uuids of the commands that this state contains")
    decided_here: tuple[str, ...] = Field(default=(), description="those of them that were decided at this very step")
    metrics: dict[str, float] = Field(default={}, description="finite values, for the best checkpoint by a metric")
    versions: dict[str, str] = {}
    model_sha256: str = Field(default="", description="of the names and shapes of the model's parameters")
    model_parameters: int = 0
    saved_at: str = Field(default="", description="UTC, ISO 8601")
    resigned_from: str = Field(default="", description="SHA-256 of this file as another key had signed it: --trust")
    signature: str = Field(default="", description="of everything else, by the installation's key")

    @field_validator("metrics")
    @classmethod
    def _only_finite_values_can_be_best(cls, metrics: dict[str, float]) -> dict[str, float]:
        if wrong := sorted(name for name, value in metrics.items() if not math.isfinite(value)):
            raise ValueError(f"metrics of a checkpoint must be finite: {', '.join(wrong)}")
        return metrics

    @property
    def size_bytes(self) -> int:
        """Return the size of all shards together, in bytes."""
        return sum(shard.size_bytes for shard in self.shards)

    def canonical(self) -> bytes:
        """Return the canonical text to sign: everything but the signature. Raises `Invalid` if it is not JSON.

        Fields that were never set are left out, so that a field added later does not void older signatures.
        """
        return _spell(self._plain(exclude={"signature"}))

    def text(self) -> bytes:
        """Return the content of the manifest file. Raises `Invalid` if it cannot be written as JSON."""
        return _spell(self._plain(exclude=set()), indent=1)

    def inconsistency(self) -> str | None:
        """Return why the manifest contradicts itself, or None."""
        taken = set[str]()
        for shard in self.shards:
            if not is_inside(shard.path):
                return f"names a file outside of itself: {shard.path[:200]!r}"
            if shard.path in taken:
                return f"names {shard.path} twice"
            if not 0 <= shard.rank < self.world_size:
                return f"says that rank {shard.rank} of {self.world_size} wrote {shard.path}"
            taken.add(shard.path)
        return None

    def _plain(self, exclude: set[str]) -> Any:
        try:
            # Twice through JSON: numeric keys become strings and are sorted as such.
            return json.loads(json.dumps(self.model_dump(mode="json", exclude=exclude, exclude_unset=True)))
        except (ValueError, TypeError, RecursionError) as error:
            raise Invalid(f"the manifest of {self.checkpoint} cannot be written as JSON: {error}") from error


def _spell(plain: Any, indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        text = json.dumps(plain, sort_keys=True, allow_nan=False, indent=indent, separators=separators)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"a manifest cannot be written as JSON: {error}") from error
    return text.encode("ascii")


def complete(manifest: Manifest) -> Manifest:
    """Return the manifest as read back from its file: every field set, JSON types only."""
    return Manifest.model_validate(json.loads(json.dumps(manifest.model_dump(mode="json"))))


def is_inside(path: str) -> bool:
    """Return whether a relative path stays inside its folder and is in canonical form: no `..`, no `.`."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and "/".join(parts) == path
        and path.isprintable()
        and "\\" not in path
        and not {"..", "/", "//"} & set(parts)
        and path != MANIFEST
    )
