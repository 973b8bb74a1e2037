"""Metrics store: measurements of a run in one SQLite table, separate from the journal.

Measurements may be lost and never stop a run. A database that cannot be read is moved aside, with its WAL files
(`metrics.sqlite.damaged-1`), and a new one is created; if no file can be created at all, the points are kept in memory
until the end of the term. Points that cannot be stored (disk full) are dropped with a warning in the log.

The row number of a point is the cursor of `read`. After a power failure the newest points may be missing and their
numbers used again. NaN is stored as NULL, since SQLite has no NaN.
"""

import itertools
import logging
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from control_plane.api.messages import MeasuredValue, Measurements, MetricSummary, Point, StepRange
from control_plane.core.model.values import MAX_STEP
from control_plane.storage.private import FILE_MODE

MAX_POINTS_PER_READ = 20_000
"""About 2 MB of JSON and 0.1 s of work: a chart of one series of a long run in one answer."""

MAX_SERIES = 2_000
"""Every snapshot carries each series' newest value. 8 measurements on each of 250 ranks; further names are dropped."""

MAX_BUSY_S = 0.5
"""How long to wait for a predecessor's last write. The control server is blocked meanwhile."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, step INTEGER NOT NULL, value REAL, time_s REAL NOT NULL,
    branch TEXT NOT NULL DEFAULT 'main', training INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS points_by_name ON points (name, id);
CREATE TABLE IF NOT EXISTS latest (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID;
"""

_COLUMNS = "id, name, step, value, time_s, branch, training"
Row = tuple[int, str, int, float | None, float, str, int]

_FALLS = """
SELECT max(step), max(fell) FROM (
    SELECT step, step <= lag(step) OVER (ORDER BY id) AS fell FROM points WHERE name = ? AND branch = ?)
"""
_KEPT = """(
    SELECT id, name, branch, step, value FROM (
        SELECT *, min(step) OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS again
        FROM points WHERE name = :name AND branch = :branch)
    WHERE again IS NULL OR again > step)
"""
"""Leaves out points of steps that were repeated later, after a failure. Four times slower."""

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_ERROR}
"""Errors of the file itself, unlike a full disk or a locked file, whose points are good."""

log = logging.getLogger(__name__)


class MetricsStore:
    """Metrics store of one run. Single writer; callable from any thread, but not concurrently."""

    def __init__(self, path: Path) -> None:
        """Open or create the database. Never raises; see the module's docstring for the fallbacks."""
        self._path = path
        # Invariant: the newest value of every series in the table.
        self._latest: dict[str, float] = {}
        self._last_id = 0
        # Cache: the highest step of a series on a branch; infinity once a step was repeated.
        self._highest: dict[tuple[str, str], float] = {}
        self._database = self._open_something()

    def add(self, points: Sequence[Point]) -> None:
        """Store points, in this order and atomically; drop them if they cannot be stored."""
        kept = self._within_limits(points)
        database = self._database
        kept_now = not kept or self._insert(kept)
        replaced = self._database is not database
        if not kept_now and not (replaced and self._insert(kept)):
            log.warning("%d measurements were dropped", len(kept))

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Return at most `limit` points after the cursor, oldest first; only the named series, if any.

        Repeated calls with `after=cursor` return every point exactly once. A cursor beyond the end is of a database
        that was lost: reading then starts at the first point.
        """
        after = max(after, 0) if after <= self._last_id else 0
        limit = min(max(limit, 0), MAX_POINTS_PER_READ)
        with self._surviving_errors("read"):
            rows = self._select(after, limit, names)
            cursor = rows[-1][0] if len(rows) == limit and rows else (self._last_id if limit else after)
            return Measurements(points=tuple(_point(row) for row in rows), cursor=cursor)
        return Measurements(points=(), cursor=after)

    def latest(self) -> dict[str, float]:
        """Return the latest value of each series."""
        return dict(self._latest)

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """Return the last and lowest value of these metrics on each stretch; none for one without measurements."""
        with self._surviving_errors("read"):
            known = [name for name in dict.fromkeys(names) if name in self._latest]
            results = [self._result(stretch, name) for stretch in stretches for name in known]
            return tuple(result for result in results if result is not None)
        return ()

    def _result(self, stretch: StepRange, name: str) -> MetricSummary | None:
        """Return the last and the lowest point of a series on a stretch."""
        last_step = MAX_STEP if stretch.last is None else stretch.last
        points = _KEPT if self._falls(name, stretch.branch) else "points"
        where = "name = :name AND branch = :branch AND step BETWEEN :first AND :last"
        query = f"SELECT step, value FROM {points} WHERE {where}"
        given = {"name": name, "branch": stretch.branch, "first": stretch.first, "last": last_step}
        last = self._database.execute(f"{query} ORDER BY id DESC LIMIT 1", given).fetchone()
        if last is None:
            return None
        finite = f"{query} AND value > -9e999 AND value < 9e999 ORDER BY value, id LIMIT 1"
        lowest = self._database.execute(finite, given).fetchone()
        return MetricSummary(
            name=name, stretch=stretch, last=_measured(last), lowest=_measured(lowest) if lowest else None
        )

    def _falls(self, name: str, branch: str) -> bool:
        """Return whether steps of a series were repeated. Queried once; `_insert` then updates it."""
        key = name, branch
        if key not in self._highest:
            highest, fell = self._database.execute(_FALLS, key).fetchone()
            self._highest[key] = math.inf if fell else (-1 if highest is None else highest)
        return self._highest[key] == math.inf

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _within_limits(self, points: Sequence[Point]) -> list[Point]:
        names = set(self._latest)
        kept = list[Point]()
        for point in points:
            sane = abs(point.step) <= MAX_STEP and math.isfinite(point.time_s)
            if sane and (point.name in names or len(names) < MAX_SERIES):
                names.add(point.name)
                kept.append(point)
        if len(kept) < len(points):
            log.warning(
                "%d measurements were dropped: over %d series, or an impossible step or time",
                len(points) - len(kept),
                MAX_SERIES,
            )
        return kept

    def _insert(self, points: Sequence[Point]) -> bool:
        newest = {point.name: point.value for point in points}
        numbered = [
            (self._last_id + n, p.name, p.step, _stored(p.value), p.time_s, p.branch, p.training)
            for n, p in enumerate(points, 1)
        ]
        with self._surviving_errors("written"):
            with self._database:
                self._database.executemany(f"INSERT INTO points ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", numbered)
                values = [(name, _stored(value)) for name, value in newest.items()]
                self._database.executemany("INSERT OR REPLACE INTO latest VALUES (?, ?)", values)
            self._latest |= newest
            self._last_id += len(points)
            self._note_falls(points)
            return True
        return False

    def _note_falls(self, points: Sequence[Point]) -> None:
        for point in points:
            highest = self._highest.get((point.name, point.branch))
            if highest is not None:
                self._highest[point.name, point.branch] = point.step if point.step > highest else math.inf

    def _select(self, after: int, limit: int, names: Sequence[str]) -> list[Row]:
        if not names:
            query = f"SELECT {_COLUMNS} FROM points WHERE id > ? ORDER BY id LIMIT ?"
            return self._database.execute(query, (after, limit)).fetchall()
        query = f"SELECT {_COLUMNS} FROM points WHERE name = ? AND id > ? ORDER BY id LIMIT ?"
        known = [name for name in dict.fromkeys(names) if name in self._latest]
        rows = itertools.chain(*(self._database.execute(query, (name, after, limit)) for name in known))
        return sorted(rows)[:limit]

    @contextmanager
    def _surviving_errors(self, doing: str) -> Iterator[None]:
        """Log and suppress an error of the database; replace the database if it is damaged."""
        try:
            yield
        except sqlite3.Error as error:
            log.warning("the measurements could not be %s: %s", doing, error)
            if _is_damage(error):
                self._database.close()
                self._database = self._open_something()

    def _open_something(self) -> sqlite3.Connection:
        try:
            return self._open(self._path)
        except sqlite3.Error as error:
            log.warning("the measurements in %s cannot be opened: %s", self._path.name, error)
            damaged = _is_damage(error)
        try:
            if damaged:
                _move_aside(self._path)
                return self._open(self._path)
        except (sqlite3.Error, OSError) as error:
            log.warning("a new %s cannot be created: %s", self._path.name, error)
        log.warning("measurements are kept in memory only, until the control server ends")
        return self._open(":memory:")

    def _open(self, path: Path | str) -> sqlite3.Connection:
        if isinstance(path, Path) and path.is_symlink():
            raise sqlite3.OperationalError(f"{path.name} is a symbolic link; it must be a regular file")
        # A Ray actor may be built in one thread and called in another.
        if isinstance(path, Path):
            with suppress(OSError):  # SQLite then reports the error
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
        database = sqlite3.connect(path, timeout=MAX_BUSY_S, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.executescript(_SCHEMA)
            _add_columns(database)
            rows = database.execute("SELECT name, value FROM latest").fetchall()
            (last_id,) = database.execute("SELECT max(id) FROM points").fetchone()
        except BaseException:
            database.close()
            raise
        self._latest = {name: _loaded(value) for name, value in rows}
        self._highest = {}
        # A cursor from before the file was replaced must not point beyond the new points.
        self._last_id = max(self._last_id, last_id or 0)
        return database


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the primary result code; 0 means no code, so not from the file.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _move_aside(path: Path) -> None:
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    for companion in ("", "-wal", "-shm"):
        part = path.with_name(path.name + companion)
        if part.exists():
            part.rename(path.with_name(f"{path.name}.damaged-{number}{companion}"))


def _stored(value: float) -> float | None:
    return None if math.isnan(value) else value


def _loaded(value: float | None) -> float:
    return math.nan if value is None else value


def _measured(row: tuple[int, float | None]) -> MeasuredValue:
    return MeasuredValue(step=row[0], value=_loaded(row[1]))


def _point(row: Row) -> Point:
    _, name, step, value, time_s, branch, training = row
    return Point(name=name, step=step, value=_loaded(value), time_s=time_s, branch=branch, training=training)


def _add_columns(database: sqlite3.Connection) -> None:
    """Migrate databases of earlier releases, without branches or trainings: their points belong to the first ones."""
    there = {row[1] for row in database.execute("PRAGMA table_info(points)")}
    for name, kind in (("branch", "TEXT NOT NULL DEFAULT 'main'"), ("training", "INTEGER NOT NULL DEFAULT 1")):
        if name not in there:
            database.execute(f"ALTER TABLE points ADD COLUMN {name} {kind}")
