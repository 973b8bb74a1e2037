"""Single writer of a journal (write-ahead log), with fencing by segment: a record is durable or not confirmed.

`segments.py` describes the file format and what a reader honours. A writer takes its term by creating the next segment.
After each fsync it checks for a newer one: if there is one, it is fenced and confirms nothing any more.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from control_plane.core.model.errors import Fenced, Invalid, NotFound, Unavailable
from control_plane.core.model.records import Entry, Record
from control_plane.storage.failpoints import halves, reach
from control_plane.storage.journal.command_index import CommandIndex
from control_plane.storage.journal.segments import FORMAT_VERSION, Pin, list_segments, load, seal, segment_name, unseal
from control_plane.storage.private import FILE_MODE, make_folder

MAX_LINE_BYTES = 8 * 2**20
"""Four times the start record of 16,384 ranks; longer data belongs into the metrics."""


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)


@dataclass(frozen=True, slots=True)
class Disk:
    """The system calls that make bytes durable, replaceable so that tests can tear and fail them."""

    create: Callable[[Path], int] = _create
    write: Callable[[int, bytes], int] = os.write
    fsync: Callable[[int], None] = os.fsync

    def persist(self, descriptor: int, data: bytes, at: str) -> None:
        """Write all data and fsync. `at`: the failpoint's site. Raises `OSError`."""
        reach(at, "before_write")
        for part in halves(at, data):
            while part:
                part = part[self.write(descriptor, part) :]
        self._settle(descriptor, at)

    def sync(self, path: Path, at: str) -> None:
        """Fsync a file, or a folder's list of files. Raises `OSError`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._settle(descriptor, at)
        finally:
            os.close(descriptor)

    def _settle(self, descriptor: int, at: str) -> None:
        reach(at, "before_sync")
        self.fsync(descriptor)
        reach(at, "after_sync")


def read(directory: Path) -> list[Entry]:
    """Return the verified records, oldest first. Changes nothing and takes no term; safe beside an active writer.

    Raises `NotFound` without such a folder, `Damaged`, `Unavailable` if a file cannot be read.
    """
    if not directory.is_dir():
        raise NotFound("this run has no journal")
    with _disk_errors("read"):
        return load(directory)[0]


@contextmanager
def _disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the journal could not be {doing}: {error.strerror or error}", errno=error.errno) from error


class Journal:
    """Single writer of a run's journal, for one term. Not thread-safe."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Initialize without I/O; use `Journal.open`."""
        self._directory, self._disk = directory, disk
        self._descriptor: int | None = None
        self._entries = list[Entry]()
        self._asked = CommandIndex()
        # Everything up to here is durable and may be confirmed; the segment may be longer.
        self._end = Pin()
        self._segment = self._term = 0
        # True while the outcome of a write is unknown: the next write then goes to a new segment.
        self._unsettled = False
        self._fenced = False

    @classmethod
    def open(cls, directory: Path, disk: Disk = Disk()) -> "Journal":
        """Take the next term and read the existing records. Creates the folder if it is missing.

        Raises `Damaged`, `Unavailable` if the disk fails, `Fenced` if another writer was faster.
        """
        journal = cls(directory, disk)
        with _disk_errors("opened"):
            reach("journal.folder", "before_create")
            make_folder(directory)
            disk.sync(directory.parent, "journal.folder")
            journal._take_term()
        return journal

    @property
    def term(self) -> int:
        """Return the term: the number of the segment that `open` created."""
        return self._term

    @property
    def entries(self) -> Sequence[Entry]:
        """Return the records that `open` read, oldest first."""
        return self._entries

    def append(self, records: Sequence[Record], now: str) -> list[Entry]:
        """Append records atomically and wait until they are durable. Returns the entries as a reader will see them.

        After a crash a reader finds all of these records, or none. After a failed write the next call continues in a
        new segment that pins this one at its last confirmed record. Truncating it instead could remove what a newer
        writer has just read.

        Raises `Fenced` (from then on, always) if there is a newer writer; `Unavailable` if the disk fails, and then
        nothing is confirmed; `Invalid`, before anything is written, if a record is too long or not JSON.
        """
        if self._fenced:
            raise Fenced(f"term {self._term} of this run's control server is over: a newer control server has started")
        if self._descriptor is None:
            raise Unavailable("the journal is closed")
        if not records:
            return []
        with _disk_errors("written"):
            if self._unsettled:
                self._check_fence()
                self._begin_segment(self._segment + 1)
            entries, data, end = self._compose(records, now)
            self._unsettled = True
            self._disk.persist(self._descriptor, data, "journal.append")
            self._check_fence()
            reach("journal.append", "after_fence")
        self._unsettled, self._end = False, end
        return entries

    def close(self) -> None:
        """Close the file; nothing can be appended afterwards."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _compose(self, records: Sequence[Record], now: str) -> tuple[list[Entry], bytes, Pin]:
        end, data, entries = self._end, bytearray(), list[Entry]()
        write = {"batch": end.seq + 1} | ({"until": end.seq + len(records)} if len(records) > 1 else {})
        for record in records:
            try:
                line = self._asked.complete(Entry(seq=end.seq + 1, time=now, record=record)).line()
                raw = seal(line | write | {"prev": end.digest})
                entries.append(Entry.from_line(unseal(raw)))
            except (ValueError, TypeError, RecursionError) as error:
                raise Invalid(f"a {record.type} cannot be written as JSON: {error}") from error
            if len(raw) > MAX_LINE_BYTES:
                raise Invalid(f"a {record.type} of {len(raw)} bytes exceeds the limit of {MAX_LINE_BYTES}")
            data += raw + b"\n"
            end = Pin(end.segment, end.size_bytes + len(raw) + 1, end.seq + 1, sha256(raw).hexdigest())
        return entries, bytes(data), end

    def _take_term(self) -> None:
        for number in itertools.count(max(list_segments(self._directory), default=0) + 1):
            with suppress(FileExistsError):
                self._begin_segment(number)
                self._term = number
                return

    def _begin_segment(self, number: int) -> None:
        """Create a segment, pin the older ones, and continue there. Raises `FileExistsError` if it exists."""
        path = self._directory / segment_name(number)
        reach("journal.segment", "before_create")
        descriptor = self._disk.create(path)
        try:
            reach("journal.segment", "after_create")
            if self._descriptor is None:
                self._recover(number)
            end = self._end
            pin = {"segment": end.segment, "size_bytes": end.size_bytes, "seq": end.seq}
            header = {"type": "Segment", "version": FORMAT_VERSION, "term": number, "after": pin, "prev": end.digest}
            raw = seal(header)
            self._disk.persist(descriptor, raw + b"\n", "journal.header")
            self._disk.sync(self._directory, "journal.segment")
        except BaseException:
            self._abandon(descriptor, number)
            raise
        self.close()
        self._descriptor, self._segment = descriptor, number
        self._end = Pin(number, len(raw) + 1, end.seq, sha256(raw).hexdigest())
        self._check_fence()
        reach("journal.segment", "after_fence")

    def _recover(self, number: int) -> None:
        """Read the older segments, and fsync the pinned one, whose writer may have died before its own fsync."""
        self._entries, self._end = load(self._directory, below=number)
        self._asked = CommandIndex()
        for entry in self._entries:
            self._asked.complete(entry)
        if self._end.segment:
            self._disk.sync(self._directory / segment_name(self._end.segment), "journal.taken_over")

    def _abandon(self, descriptor: int, number: int) -> None:
        """Give up a segment that could not be started. Only an empty one may be removed: no other writer can pin it."""
        if os.fstat(descriptor).st_size == 0:
            reach("journal.abandoned", "before_unlink")
            (self._directory / segment_name(number)).unlink(missing_ok=True)
        else:
            self._segment = number
        os.close(descriptor)

    def _check_fence(self) -> None:
        segments = list_segments(self._directory)
        if segments and segments[-1] > self._segment:
            self._fenced = True
            raise Fenced(f"term {self._term} of this run's control server is over: a newer control server has started")
        if self._end.segment not in segments:
            raise Unavailable(f"the journal's {segment_name(self._end.segment)} has been removed")
