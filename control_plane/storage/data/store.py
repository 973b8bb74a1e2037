"""Store of one live source: a request's body becomes one immutable shard of the records that are new.

    store = SourceStore(files, "fresh", settings)
    answer = store.take_in(body, "jsonl", sender, key=uuid)      # durable when it returns

    data/SOURCE/SHA256.EXTENSION    a shard, named by the SHA-256 of its bytes; never changed
    data/SOURCE/incoming/           bodies and shards that are being written
    data/SOURCE/index.sqlite        see `index`

All or nothing: a request that breaks the schema in one record changes nothing, unless its
sender asks for the good ones.
"""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from control_plane.api.data_views import MAX_REFUSED_SHOWN, Ingested, RefusedRecord
from control_plane.core.model.data import ShardRecord, SourceSettings, shard_name
from control_plane.core.model.errors import Conflict, Invalid, Overloaded, Unavailable
from control_plane.storage.checkpoint.shards import sync, sync_folder, write_all
from control_plane.storage.data.bodies import Media, read_body
from control_plane.storage.data.checking import BadRecord
from control_plane.storage.data.encoding import check_fits, content_hash, encode
from control_plane.storage.data.index import Sender, SourceIndex
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE, make_folder

MAX_WAITING_SHARDS = 1024
"""Shards of a source that no command has brought into the mixture yet: with so many, a sender is asked to wait. A run
that is paused for a day takes in what a person sends, and not what a program sends without end."""

LEFT_AFTER_S = 3600.0
"""Age of a body in `incoming` whose request surely is over: its process was killed."""


@dataclass(slots=True)
class _Batch:
    """Checked records of one request, with their content hashes; each content once."""

    records: list[dict[str, Any]] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    twice: int = 0
    refused: list[RefusedRecord] = field(default_factory=list)
    refused_count: int = 0


class SourceStore:
    """Store of one live source of a run. Its calls block on the disk; several processes may use the same one."""

    def __init__(self, files: RunFiles, source: str, settings: SourceSettings) -> None:
        """Open the store, whose folder is made. Raises `Unavailable`, `Damaged`."""
        self._run, self._source, self._settings = files.run, source, settings
        self.folder = files.data / source
        self.index = SourceIndex(self.folder, source)

    @contextmanager
    def body(self) -> Iterator[Path]:
        """Give a path for a request's body; it is removed afterwards, and so are those that others left behind."""
        incoming = self.folder / "incoming"
        make_folder(incoming)
        self._clean(incoming)
        path = incoming / uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def check_room(self) -> None:
        """Raise `Overloaded` if too many shards wait for their command."""
        waiting = self.index.counts()[2]
        if waiting >= MAX_WAITING_SHARDS:
            raise Overloaded(
                f"{waiting:,} shards of source {self._source} are not in the mixture yet: the run takes them in while "
                "it trains; try again later, or send more records in one request"
            )

    def take_in(
        self, body: Path, media: Media, sender: Sender, *, key: UUID | None = None, only_good: bool = False
    ) -> Ingested:
        """Take the records of a body in, durably.

        Args:
            key: names the request: a repetition gets the answer of the first one, and changes nothing.
            only_good: take in the records that fit the schema and leave the others out, instead of refusing all.

        Raises:
            Invalid: records break the schema, or the body is not what it says it is; nothing was taken in.
            Conflict: another request had this key.
            Unavailable: the disk is full, or cannot be written; nothing was taken in.
        """
        request_sha256 = self._hash_of(body, media, only_good)
        batch = self._checked(body, media, only_good)
        with self.index.transaction() as database:
            if key is not None and (before := self.index.receipt(database, key)) is not None:
                if before[0] != request_sha256:
                    raise Conflict("another request had this Idempotency-Key, with other records")
                return before[1].model_copy(update={"repeated": True})
            known = self.index.known(database, batch.hashes)
            new = [at for at, one in enumerate(batch.hashes) if one not in known]
            shard = self._write([batch.records[at] for at in new]) if new else None
            answer = Ingested(
                run=self._run,
                source=self._source,
                shard=shard,
                records=len(new),
                duplicates=len(known) + batch.twice,
                refused=tuple(batch.refused),
                refused_count=batch.refused_count,
            )
            if shard is not None:
                received_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                about = {"received_at": received_at, "key": str(key) if key else None}
                self.index.add_shard(database, shard, [batch.hashes[at] for at in new], sender, **about)
            if key is not None:
                self.index.add_receipt(database, key, request_sha256, answer)
        return answer

    def _checked(self, body: Path, media: Media, only_good: bool) -> _Batch:
        """Return the records of a body. Raises `Invalid` if one is bad and not only the good ones are wanted."""
        batch, seen = _Batch(), set[bytes]()
        for at, record in read_body(body, media, self._settings):
            try:
                if isinstance(record, BadRecord):
                    raise record
                check_fits(record, batch.records[0] if batch.records else record, self._settings)
            except BadRecord as reason:
                batch.refused_count += 1
                if len(batch.refused) < MAX_REFUSED_SHOWN:
                    batch.refused.append(RefusedRecord(at=at, reason=str(reason)))
                continue
            one = content_hash(record)
            if one in seen:
                batch.twice += 1
                continue
            seen.add(one)
            batch.records.append(record)
            batch.hashes.append(one)
        if batch.refused_count and not only_good:
            first = batch.refused[0]
            more = f", and {batch.refused_count - 1:,} more records" if batch.refused_count > 1 else ""
            raise Invalid(
                f"{first.at}: {first.reason}{more}; nothing was taken in",
                refused=[one.model_dump() for one in batch.refused],
                refused_count=batch.refused_count,
            )
        if not batch.records and not batch.refused_count:
            raise Invalid("the body holds no records")
        return batch

    def _write(self, records: list[dict[str, Any]]) -> ShardRecord:
        """Write a shard durably, under its name. Raises `Unavailable`."""
        data = encode(records, self._settings)
        sha256 = hashlib.sha256(data).hexdigest()
        draft = self.folder / "incoming" / f"{uuid4().hex}.shard"
        name = self.folder / shard_name(sha256, self._settings.format)
        try:
            reach("ingest.file", "before_create")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            try:
                write_all(descriptor, data, "ingest.file")
                sync(descriptor, "ingest.file")
            finally:
                os.close(descriptor)
            reach("ingest.file", "before_rename")
            draft.replace(name)
            sync_folder(self.folder, "ingest.folder")
        except OSError as error:
            draft.unlink(missing_ok=True)
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
            raise Unavailable(f"the records could not be stored: {what}; nothing was taken in") from None
        return ShardRecord(source=self._source, sha256=sha256, records=len(records), bytes=len(data))

    def _hash_of(self, body: Path, media: Media, only_good: bool) -> str:
        with body.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(f"{media} {only_good}".encode())
        return digest.hexdigest()

    def _clean(self, incoming: Path) -> None:
        now_s = time.time()
        with os.scandir(incoming) as listing:
            for entry in listing:
                with suppress(FileNotFoundError):
                    if now_s - entry.stat(follow_symlinks=False).st_mtime > LEFT_AFTER_S:
                        os.unlink(entry.path)
