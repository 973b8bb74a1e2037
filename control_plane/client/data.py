"""Client of the data routes: sends records to a live source, a file in pieces, and reads the sources of a run."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4, uuid5

from control_plane.api.bundles import deadline_s
from control_plane.api.data_views import Ingested, RunData
from control_plane.api.messages import Measurements, Snapshot
from control_plane.client.answers import parse
from control_plane.client.connection import GatewayConnection, path_of
from control_plane.core.health.weak_spots import WeakSpot, held_out_names, weak_spots
from control_plane.core.model.errors import Invalid, Overloaded, Unavailable

SUFFIXES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
    ".txt": "text/plain",
    ".parquet": "application/vnd.apache.parquet",
    ".npz": "application/x-npz",
    ".zip": "application/zip",
}
BY_LINES = ("application/jsonl", "text/plain")
"""Media types that can be cut between two lines."""

PIECE_BYTES = 4 * 1024 * 1024
"""Size of the pieces of a file of lines: each is one shard, and held in memory by the gateway while it is checked."""

WITHOUT_PROGRESS_FOR_S = 60.0
RETRY_AFTER_S = 1.0

NAMES_PER_REQUEST, POINTS_PER_PAGE = 64, 20_000

_PIECES = UUID("6c4be6e5-52f7-4d0a-9b7e-5f0c38f2b0a1")

Progress = Callable[[int, int], None]


class RunRecords(GatewayConnection):
    """Sends records, and reads the sources of runs."""

    def data(self, run: str) -> RunData:
        """Return a run's sources, with their weights, shares and newest shards."""
        return parse(RunData, self._get_json(path_of(run, "data")))

    def weak_spots(self, run: str) -> list[WeakSpot]:
        """Return a run's sources, and slices of them, by the loss on what they hold out: highest first.

        Empty before the first evaluation, and where no source has `held_out`.
        """
        snapshot = parse(Snapshot, self._get_json(path_of(run)))
        names, points = held_out_names(snapshot.latest), []
        for first in range(0, len(names), NAMES_PER_REQUEST):
            cursor, some = 0, names[first : first + NAMES_PER_REQUEST]
            while True:
                answer = self._get_json(path_of(run, "metrics"), after=cursor, limit=POINTS_PER_PAGE, name=some)
                page = parse(Measurements, answer)
                points += [(point.name, point.step, point.value) for point in page.points]
                cursor = page.cursor
                if len(page.points) < POINTS_PER_PAGE:
                    break
        return weak_spots(points, sources=snapshot.mixture)

    def add_records(
        self,
        run: str,
        source: str,
        body: bytes,
        media_type: str,
        *,
        key: UUID | None = None,
        only_good: bool = False,
    ) -> Ingested:
        """Send records to a live source; they are durable when this returns.

        Args:
            key: names the request, so that a repetition changes nothing; by default a new one.
            only_good: take in the records that fit the schema, instead of refusing all.

        Raises:
            Invalid: records break the schema; `detail["refused"]` lists the first of them.
            Overloaded: too much is on its way; try again later.
        """
        headers = {"Content-Type": media_type, "Idempotency-Key": str(key or uuid4())}
        params = {"only_good": "true"} if only_good else {}
        timeout_s = self._timeout_s + deadline_s(len(body))
        path = path_of(run, "data", source)
        answer = self._request("POST", path, content=body, headers=headers, params=params, timeout=timeout_s)
        return parse(Ingested, answer)

    def add_file(
        self, run: str, source: str, path: Path, *, only_good: bool = False, progress: Progress | None = None
    ) -> list[Ingested]:
        """Send a file of records. Raises `Invalid` if it cannot be read; all else as `add_content`."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror or error}") from None
        return self.add_content(run, source, path.name, content, only_good=only_good, progress=progress)

    def add_content(
        self,
        run: str,
        source: str,
        name: str,
        content: bytes,
        *,
        only_good: bool = False,
        progress: Progress | None = None,
    ) -> list[Ingested]:
        """Send a file's content, a large one in several requests, each one shard. Repeatable: nothing comes in twice.

        Args:
            name: of the file; its suffix tells the format.
            progress: is called with the bytes that were sent, and those of the whole.

        Raises `Invalid` for a suffix that says nothing, and like `add_records`.
        """
        media_type = SUFFIXES.get(Path(name).suffix.lower())
        if media_type is None:
            raise Invalid(f"{name}: its suffix says nothing of its format; known are {', '.join(SUFFIXES)}")
        most_bytes = self.data(run).max_bytes
        pieces = _by_lines(content, min(PIECE_BYTES, most_bytes)) if media_type in BY_LINES else iter([content])
        what, sent, answers = f"{hashlib.sha256(content).hexdigest()} {only_good} {most_bytes}", 0, []
        for number, piece in enumerate(pieces):
            key = uuid5(_PIECES, f"{run} {source} {what} {number}")
            answers.append(self._send_patiently(run, source, piece, media_type, key, only_good))
            sent += len(piece)
            if progress is not None:
                progress(sent, len(content))
        return answers

    def _send_patiently(
        self, run: str, source: str, piece: bytes, media_type: str, key: UUID, only_good: bool
    ) -> Ingested:
        give_up_at = time.monotonic() + WITHOUT_PROGRESS_FOR_S
        while True:
            try:
                return self.add_records(run, source, piece, media_type, key=key, only_good=only_good)
            except (Overloaded, Unavailable):
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(RETRY_AFTER_S)


def _by_lines(content: bytes, most_bytes: int) -> Iterator[bytes]:
    """Yield pieces of whole lines, of at most this size; a longer line alone."""
    begin = 0
    while begin < len(content):
        end = begin + most_bytes
        if end < len(content):
            line_end = content.rfind(b"\n", begin, end) + 1
            end = line_end or content.find(b"\n", end) + 1 or len(content)
        yield content[begin:end]
        begin = end
