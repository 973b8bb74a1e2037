"""Index of what a live source has taken in, in one SQLite file: content hashes, shards with provenance, and receipts.

    data/SOURCE/index.sqlite

A shard's file is durable before the index names it, and the index before its sender is told: a crash between leaves a
file that nobody knows, which the same records make again.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from control_plane.api.data_views import MAX_SHARDS_SHOWN, Ingested, ShardStage, ShardView
from control_plane.core.model.data import MAX_SHARDS, ShardRecord
from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.core.model.limits import AGENT
from control_plane.storage.private import FILE_MODE, make_folder

INDEX = "index.sqlite"
"""Name of the file in a source's folder."""

MAX_BUSY_S = 30.0
"""How long to wait for another request of the same source, which writes its shard meanwhile."""

HASHES_PER_QUERY = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (hash BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (
    id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, records INTEGER NOT NULL, bytes INTEGER NOT NULL,
    author TEXT NOT NULL, role TEXT NOT NULL, received_at TEXT NOT NULL, key TEXT,
    stage TEXT NOT NULL DEFAULT 'waiting', command TEXT, step INTEGER, reason TEXT);
CREATE INDEX IF NOT EXISTS shards_by_stage ON shards (stage, id);
CREATE TABLE IF NOT EXISTS receipts (key TEXT PRIMARY KEY, body_sha256 TEXT NOT NULL, answer TEXT NOT NULL);
"""

_SHOWN = "sha256, records, bytes, author, received_at, key, stage, command, step, reason"


@dataclass(frozen=True, slots=True)
class Sender:
    """Owner of the token that has sent records."""

    author: str
    role: str


@dataclass(frozen=True, slots=True)
class Announcement:
    """Shards that one command announces, of one sender. Its uuid is durable, so that a repetition is no second one."""

    uuid: UUID
    sender: Sender
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True)
class InheritedShard:
    """Shard that is in the mixture of a run, with its provenance, for the index of a fork."""

    record: ShardRecord
    sender: Sender
    received_at: str
    key: str | None
    command: str | None
    step: int | None
    reason: str | None


class SourceIndex:
    """Index of one source. Any process may open it; each call is one transaction."""

    def __init__(self, folder: Path, source: str) -> None:
        """Open the index in a source's folder, which is made. Raises `Damaged`, `Unavailable`."""
        self._source, self._path = source, folder / INDEX
        try:
            make_folder(folder)
            if not self._path.exists():
                self._path.touch(mode=FILE_MODE)
        except OSError as error:
            raise Unavailable(f"the folder of source {source} cannot be written: {error.strerror or error}") from None
        with self.transaction(writes=False) as database:
            is_made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'receipts'").fetchone()
        if not is_made:
            with self.transaction() as database:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)

    @contextmanager
    def transaction(self, writes: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the source's write lock; commit at the end, durably, or take everything back.

        Without `writes` no lock is waited for that a request holds while it writes its shard.
        """
        try:
            database = sqlite3.connect(self._path, timeout=MAX_BUSY_S, isolation_level=None)
        except sqlite3.Error as error:
            raise self._trouble(error) from None
        try:
            database.execute("PRAGMA synchronous = FULL")
            database.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._trouble(error) from None
        finally:
            database.close()

    def _trouble(self, error: sqlite3.Error) -> Damaged | Unavailable:
        if isinstance(error, sqlite3.OperationalError):
            return Unavailable(f"the index of source {self._source} cannot be used now ({error}); nothing was changed")
        return Damaged(f"the index of source {self._source} is damaged ({error}): {self._path.name} in its folder")

    # --- What comes in, within one transaction ---

    def receipt(self, database: sqlite3.Connection, key: UUID) -> tuple[str, Ingested] | None:
        """Return hash of the body and answer of the request with this key, if there was one."""
        row = database.execute("SELECT body_sha256, answer FROM receipts WHERE key = ?", (str(key),)).fetchone()
        return (row[0], Ingested.model_validate_json(row[1])) if row else None

    def known(self, database: sqlite3.Connection, hashes: Sequence[bytes]) -> set[bytes]:
        """Return those of these content hashes that the source has."""
        found: set[bytes] = set()
        for first in range(0, len(hashes), HASHES_PER_QUERY):
            some = hashes[first : first + HASHES_PER_QUERY]
            marks = ",".join("?" * len(some))
            found |= {row[0] for row in database.execute(f"SELECT hash FROM records WHERE hash IN ({marks})", some)}
        return found

    def add_shard(
        self, database: sqlite3.Connection, shard: ShardRecord, hashes: Sequence[bytes], sender: Sender, **about: Any
    ) -> None:
        """Add a shard, whose file is durable, with its records. `about`: received_at, key."""
        database.executemany("INSERT INTO records VALUES (?)", ((one,) for one in hashes))
        database.execute(
            "INSERT INTO shards (sha256, records, bytes, author, role, received_at, key) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                shard.sha256,
                shard.records,
                shard.bytes,
                sender.author,
                sender.role,
                about["received_at"],
                about.get("key"),
            ),
        )

    def add_inherited(
        self, database: sqlite3.Connection, shard: InheritedShard, hashes: Sequence[bytes], reason: str
    ) -> None:
        """Add a shard that a fork has from its parent, once. `reason`: says so."""
        if database.execute("SELECT 1 FROM shards WHERE sha256 = ?", (shard.record.sha256,)).fetchone():
            return
        database.executemany("INSERT OR IGNORE INTO records VALUES (?)", ((one,) for one in hashes))
        database.execute(
            "INSERT INTO shards (sha256, records, bytes, author, role, received_at, key, stage, command, step, reason) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 'live', ?, ?, ?)",
            (
                shard.record.sha256,
                shard.record.records,
                shard.record.bytes,
                shard.sender.author,
                shard.sender.role,
                shard.received_at,
                shard.key,
                shard.command,
                shard.step,
                reason,
            ),
        )

    def add_receipt(self, database: sqlite3.Connection, key: UUID, body_sha256: str, answer: Ingested) -> None:
        """Add the answer to a request with a key."""
        database.execute("INSERT INTO receipts VALUES (?, ?, ?)", (str(key), body_sha256, answer.model_dump_json()))

    # --- Announcements ---

    def next_announcements(self) -> list[Announcement]:
        """Return the announcements to make now, at most two: that of agents' shards waits for a person, and no other.

        Of each kind it is one whose outcome is not known, else the oldest shards that wait.
        """
        found = (self._next_announcement(f"role {which} '{AGENT}'") for which in ("!=", "="))
        return [one for one in found if one is not None]

    def _next_announcement(self, which: str) -> Announcement | None:
        with self.transaction() as database:
            begun = database.execute(
                f"SELECT command FROM shards WHERE stage = 'announced' AND {which} ORDER BY id"
            ).fetchone()
            if begun is not None:
                return self._announcement(database, begun[0])
            oldest = database.execute(
                f"SELECT author, role FROM shards WHERE stage = 'waiting' AND {which} ORDER BY id"
            ).fetchone()
            if oldest is None:
                return None
            uuid = str(uuid4())
            database.execute(
                "UPDATE shards SET stage = 'announced', command = ? WHERE id IN (SELECT id FROM shards WHERE "
                "stage = 'waiting' AND author = ? AND role = ? ORDER BY id LIMIT ?)",
                (uuid, *oldest, MAX_SHARDS),
            )
            return self._announcement(database, uuid)

    def _announcement(self, database: sqlite3.Connection, uuid: str) -> Announcement:
        rows = database.execute(
            "SELECT author, role, sha256, records, bytes FROM shards WHERE command = ? ORDER BY id", (uuid,)
        ).fetchall()
        shards = tuple(
            ShardRecord(source=self._source, sha256=sha256, records=records, bytes=size)
            for _, _, sha256, records, size in rows
        )
        return Announcement(UUID(uuid), Sender(rows[0][0], rows[0][1]), shards)

    def settle(self, uuid: UUID, stage: ShardStage, step: int | None, reason: str | None) -> None:
        """Note what has come of an announcement."""
        with self.transaction() as database:
            database.execute(
                "UPDATE shards SET stage = ?, step = ?, reason = ? WHERE command = ?", (stage, step, reason, str(uuid))
            )

    # --- Views ---

    def counts(self) -> tuple[int, int, int]:
        """Return the records taken in, those of them that are not in the mixture yet, and the shards of the latter."""
        with self.transaction(writes=False) as database:
            received = database.execute("SELECT coalesce(sum(records), 0) FROM shards").fetchone()[0]
            waiting, shards = database.execute(
                "SELECT coalesce(sum(records), 0), count(*) FROM shards WHERE stage IN ('waiting', 'announced')"
            ).fetchone()
        return int(received), int(waiting), int(shards)

    def taken_in(self) -> tuple[InheritedShard, ...]:
        """Return the shards that commands have brought into the mixture, oldest first."""
        with self.transaction(writes=False) as database:
            rows = database.execute(
                "SELECT sha256, records, bytes, author, role, received_at, key, command, step, reason FROM shards "
                "WHERE stage = 'live' ORDER BY id"
            ).fetchall()
        return tuple(
            InheritedShard(
                ShardRecord(source=self._source, sha256=sha256, records=records, bytes=size_bytes),
                Sender(author, role),
                *rest,
            )
            for sha256, records, size_bytes, author, role, *rest in rows
        )

    def by_author(self) -> dict[str, int]:
        """Return the records taken in, by the owner of the token that has sent them."""
        with self.transaction(writes=False) as database:
            rows = database.execute("SELECT author, sum(records) FROM shards GROUP BY author ORDER BY author")
            return {str(author): int(records) for author, records in rows.fetchall()}

    def newest(self, count: int = MAX_SHARDS_SHOWN) -> tuple[ShardView, ...]:
        """Return the newest shards, newest first."""
        with self.transaction(writes=False) as database:
            rows = database.execute(f"SELECT {_SHOWN} FROM shards ORDER BY id DESC LIMIT ?", (count,)).fetchall()
        names = _SHOWN.split(", ")
        return tuple(ShardView.model_validate(dict(zip(names, row, strict=True)), strict=False) for row in rows)
