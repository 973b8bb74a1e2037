"""Sources of a run's training data: their schema, the shards that they consist of, and their state in a journal.

    sources:
      web: {format: jsonl, path: "web/*.jsonl", fields: {text: text}, weight: 0.7}
      fresh: {format: arrays, live: true, weight: 0.3, fields: {frame: {type: array, dtype: uint8, shape: [8, 8]}}}

A source is a list of shards. A shard is an immutable file, named by the SHA-256 of its bytes: of a configured path each
file is one; the shards of a live source are in the run's folder, as `data/SOURCE/SHA256.EXTENSION`. Which shards a
source has, and its weight, change only by commands that all ranks apply at one step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isclose, log
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field, StrictBool, model_validator

from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_STEP, Name

MAX_SOURCES = 64
"""Sources of one run: shares below 1 % each are beyond what a mixture is for, and the list fits on a screen."""

MAX_FIELDS = 64
MAX_DIMENSIONS = 8
MAX_WEIGHT = 1e6
MAX_SHARDS = 64
"""Shards that one command adds or moves: every rank hashes them at one step boundary."""

MAX_ROWS = 10_000
"""Rows that one command withdraws one by one: its journal line stays below 100 kB."""

SOURCE_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""A source's name is a folder's name, a part of URLs and of knobs' names: never a path."""

SourceName = Annotated[str, Field(pattern=f"^{SOURCE_NAME}$", strict=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=0, le=MAX_STEP, strict=True)]
Format = Literal["jsonl", "parquet", "text", "arrays", "images"]
FieldType = Literal["text", "integer", "number", "boolean", "array", "image"]
MAX_HELD_OUT = 0.5
"""Largest share of a source's records that is held out."""

Dtype = Literal["uint8", "int32", "int64", "float32", "float64"]

EXTENSIONS: dict[str, str] = {"jsonl": "jsonl", "parquet": "parquet", "text": "txt", "arrays": "npz", "images": "zip"}
"""Extension of a shard's file by format. jsonl: one JSON object a line; text: one record a line; arrays: an `.npz`
without compression, one array a field, whose first axis counts the records; images: a `.zip` without compression, one
PNG or JPEG a record, in the order of their names."""


def shard_name(sha256: str, format: Format) -> str:
    """Return the name of a live source's shard in the folder of the source."""
    return f"{sha256}.{EXTENSIONS[format]}"


_MASK = 2**64 - 1
HELD_OUT_STEP, HELD_OUT_MIXERS = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Constants of SplitMix64 (Steele, Lea and Flood 2014): shift and factor of each round."""


def held_out_key(sha256: str, row: int) -> int:
    """Return a number below 2**64 that is random by a record's shard and row, and the same on every machine.

    A record is held out if it is below the source's `held_out` * 2**64: of a shard, the same ones for ever, and with a
    larger share the same ones and others.
    """
    key = (int(sha256[:16], 16) + (row + 1) * HELD_OUT_STEP) & _MASK
    for shift, factor in HELD_OUT_MIXERS:
        key = ((key ^ (key >> shift)) * factor) & _MASK
    return key


def is_held_out(sha256: str, row: int, share: float) -> bool:
    """Return whether a record is held out of the training, with this share of its source."""
    return held_out_key(sha256, row) < int(share * 2**64)


UNTYPED: tuple[str, ...] = ("text", "images")
"""Formats whose records have one field, called as the format's record is: `text`, or `image`."""


class FieldSchema(Message):
    """Type of one field of a record. `dtype` and `shape` are of an array; -1 in `shape` is any length."""

    type: FieldType
    dtype: Dtype | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=-1, le=2**31)], ...], Field(max_length=MAX_DIMENSIONS)] | None = None
    required: StrictBool = True

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_the_type(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_an_array_has_a_shape(self) -> Self:
        if self.type != "array" and (self.dtype is not None or self.shape is not None):
            raise ValueError("only a field of type array has a dtype and a shape")
        if self.type == "array" and self.dtype is None:
            raise ValueError("a field of type array needs a dtype")
        return self


class SourceSettings(Message):
    """Settings of one source.

    format: of its files.
    path: glob of its first shards, relative to the config; None: it begins empty, and is live.
    weight: its share of the samples is in proportion to it; 0: it is not drawn from.
    fields: schema of a record, by field; formats text and images need none. Other fields of a record are refused.
    live: takes in records while training.
    exhausted: what follows when every record has been drawn: `repeat` begins its next pass, `stop` draws from the other
        sources only, until it is given new records.
    held_out: share of its records that are never trained on; evaluations tell the loss on them. By shard and row.
    slices: field whose values divide the held-out records, whose losses are then told by value, too.
    """

    format: Format
    path: Name | None = None
    weight: Weight = 1.0
    fields: dict[Name, FieldSchema] = Field(default={}, max_length=MAX_FIELDS)
    live: StrictBool = False
    exhausted: Literal["repeat", "stop"] = "repeat"
    held_out: Annotated[float, Field(ge=0, le=MAX_HELD_OUT, allow_inf_nan=False, strict=True)] = 0.0
    slices: Name | None = None

    @model_validator(mode="after")
    def _has_records_or_takes_them_in(self) -> Self:
        if self.path is None and not self.live:
            raise ValueError("give 'path', or 'live: true' for a source that takes in records while training")
        if not self.fields and self.format not in UNTYPED:
            raise ValueError(f"a source of format {self.format} needs 'fields', the types of a record's fields")
        if self.fields and self.format in UNTYPED:
            raise ValueError(f"a source of format {self.format} takes no 'fields': a record is one {self.record_field}")
        return self

    @model_validator(mode="after")
    def _slices_are_of_a_field(self) -> Self:
        if self.slices is None:
            return self
        if not self.held_out:
            raise ValueError("'slices' divide the records of 'held_out', of which there are none")
        field = self.schema_of_records.get(self.slices)
        if field is None or field.type not in ("text", "integer", "boolean"):
            raise ValueError(f"slices is {self.slices!r}, but must name a field of type text, integer or boolean")
        return self

    @property
    def record_field(self) -> str:
        """Name of the only field of a record of an untyped format."""
        return "image" if self.format == "images" else "text"

    @property
    def schema_of_records(self) -> dict[str, FieldSchema]:
        """Schema of a record, by field, also of an untyped format."""
        if self.format in UNTYPED:
            return {self.record_field: FieldSchema(type="image" if self.format == "images" else "text")}
        return self.fields


class ShardRecord(Message):
    """One shard of a source: an immutable file, known by the SHA-256 of its bytes, with its number of records."""

    source: SourceName
    sha256: Sha256
    records: Annotated[int, Field(ge=1, le=MAX_STEP, strict=True)]
    bytes: Annotated[int, Field(ge=1, le=MAX_STEP, strict=True)]


@dataclass(frozen=True, slots=True)
class AnnouncedShard:
    """A shard that a command has brought into the mixture, on any branch; provenance."""

    shard: ShardRecord
    command: UUID
    author: str
    seq: int
    step: int


@dataclass(slots=True)
class DataState:
    """Data of one run, as its journal has it. Only `state.evolve` changes it.

    mixture: of each source what the ranks of the current branch last read back: weight, share, records, shards. Empty:
        this run has no sources.
    added: settings of the sources that commands have added, on any branch.
    shards: what commands have announced, by source and SHA-256, on any branch. After a rollback to before its command a
        shard is no part of the mixture; its file stays, and it may be added again.
    """

    mixture: dict[str, dict[str, Any]] = field(default_factory=dict)
    added: dict[str, SourceSettings] = field(default_factory=dict)
    shards: dict[tuple[str, str], AnnouncedShard] = field(default_factory=dict)

    def note_read(self, readback: dict[str, Any] | None) -> None:
        """Take over the mixture that the ranks have read back; without one there are no sources."""
        mixture = (readback or {}).get(MIXTURE)
        self.mixture = mixture if isinstance(mixture, dict) else {}

    def note_applied(
        self,
        after: dict[str, Any] | None,
        added: Mapping[str, SourceSettings],
        shards: Iterable[ShardRecord],
        by: tuple[UUID, str, int, int],
    ) -> None:
        """Take over what a command has brought, and read back; of a shard, the first command is kept.

        Args:
            by: uuid and author of the command, the record that settled it, and its step.
        """
        self.note_read(after)
        self.added.update(added)
        for shard in shards:
            self.shards.setdefault((shard.source, shard.sha256), AnnouncedShard(shard, *by))


MIXTURE = "mixture"
"""In the readback of a data command, and among a generation's facts: state of the mixture, by source."""

FIRST_STEP, NEXT_SAMPLES = "first_step", "next_samples"
"""In the readback of a data command: the first step whose samples are drawn by it, and a digest of their names."""


def share_exponent(mixture: Mapping[str, Mapping[str, float]]) -> float:
    """Return the power by which weights make shares, 1 / temperature, as read off two sources; 1 if none tell.

    Args:
        mixture: of each source, weight and share.
    """
    known = [(float(one["weight"]), float(one["share"])) for one in mixture.values()]
    known = [(weight, share) for weight, share in known if weight > 0 and share > 0]
    for weight, share in known[1:]:
        if not isclose(weight, known[0][0]):
            return log(share / known[0][1]) / log(weight / known[0][0])
    return 1.0


def shortened(readback: Mapping[str, Any]) -> dict[str, Any]:
    """Return a readback as a person reads it: of a mixture each source's share and records, and no digest."""
    mixture = readback.get(MIXTURE)
    if not isinstance(mixture, Mapping):
        return dict(readback)
    shares = {
        name: f"{float(source.get('share') or 0):.3g} of samples ({source.get('records')} records)"
        for name, source in mixture.items()
        if isinstance(source, Mapping)
    }
    return {name: shares if name == MIXTURE else value for name, value in readback.items() if name != NEXT_SAMPLES}


NO_SOURCES = "this run has no sources: its config has no section 'sources'"
