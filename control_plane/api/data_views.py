"""Messages about a run's data: what a request has brought in, and the sources with their newest shards."""

from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from control_plane.core.model.data import ShardRecord, SourceSettings
from control_plane.core.model.intent_base import Message

MAX_REFUSED_SHOWN = 20
"""Records that an answer names; the rest are counted."""

MAX_SHARDS_SHOWN = 50

ShardStage = Literal["waiting", "announced", "live", "refused"]
"""waiting: durable, and not yet announced. announced: by a command that is not settled. live: in the mixture from
`step` on. refused: the command was not applied, with the reason."""


class RefusedRecord(Message):
    """Record of a request that was not taken in. `at`: where it is, as `line 3` or `record 3`, from 1."""

    at: str
    reason: str


class Ingested(Message):
    """Answer to records that were sent to a live source: they are durable, and a command announces them.

    Attributes:
        shard: made of the new records; None: all were there already.
        records: number of records taken in.
        duplicates: number of those left out, since the source has their content already.
        refused: the first of those that break the schema; there are some only if the sender asked for the good ones.
        repeated: this request was taken in before, under the same key, with this answer.
    """

    run: str
    source: str
    shard: ShardRecord | None
    records: int
    duplicates: int
    refused: tuple[RefusedRecord, ...] = ()
    refused_count: int = 0
    repeated: bool = False


class ShardView(Message):
    """Shard that came in while the run trains, with its provenance."""

    sha256: str
    records: int
    bytes: int
    author: str
    received_at: str
    key: str | None = None
    stage: ShardStage
    command: UUID | None = None
    step: int | None = None
    reason: str | None = None


class SourceView(Message):
    """One source of a run.

    Attributes:
        settings: from the run's config, or from the command that added it; None: not known.
        mixture: what the ranks have read back of it last, as weight, share, records; empty: not in the mixture now.
        received: records that came in over the gateway.
        waiting: of them, those that are not in the mixture yet.
        by_author: records that came in, by the owner of the token that has sent them.
        shards: the newest ones that came in, newest first.
        loss: mean training loss of its samples, as measured last; None: not measured.
        held_out_loss: on the records that it holds out, at the last evaluation, with its standard error.
    """

    name: str
    settings: SourceSettings | None
    mixture: dict[str, Any] = {}
    received: int = 0
    waiting: int = 0
    by_author: dict[str, int] = {}
    shards: tuple[ShardView, ...] = Field(default=(), max_length=MAX_SHARDS_SHOWN)
    loss: float | None = None
    held_out_loss: float | None = None
    held_out_error: float | None = None


class RunData(Message):
    """Sources of a run, by name. `max_bytes`: the largest request that brings records."""

    run: str
    step: int
    max_bytes: int
    sources: tuple[SourceView, ...]
