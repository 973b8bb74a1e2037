"""Loop of one generator: waits for an evaluation, asks for records for the weakest spot, and sends them.

What it has sent so far is read from the index of the ingest before every batch, never from its own memory: the budget
holds over kills of this process, of the gateway and of the machine. One batch is on its way at a time.
"""

import json
import time
import zlib
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from control_plane.agent.generating.asking import Asked, Record, Writer
from control_plane.agent.generating.batches import Batch, Memory
from control_plane.api.data_views import Ingested, RunData, SourceView
from control_plane.api.messages import Snapshot
from control_plane.core.health.weak_spots import WeakSpot, weakest
from control_plane.core.model.errors import NotAllowed, Overloaded, Refused, RunEnded, SteerwayError, Unavailable
from control_plane.core.rules.agent.generating import GeneratorSettings, author_of

LOOK_EVERY_S = 2.0
LINES = "application/jsonl"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
"""Pause after a failure of the function or the model; it doubles."""

FAILURES = 5
"""Failures of the function or the model for one evaluation; then it is asked after the next one again."""

Say = Callable[[str], None]


class GeneratorClient(Protocol):
    """Client interface: the part of `client.SteerwayClient` that is used. May raise `Unavailable`, `Refused`."""

    def snapshot(self, run: str) -> Snapshot:
        """Return the current state of the run."""
        ...

    def data(self, run: str) -> RunData:
        """Return a run's sources."""
        ...

    def weak_spots(self, run: str) -> list[WeakSpot]:
        """Return its weak spots, highest loss first."""
        ...

    def add_records(
        self, run: str, source: str, body: bytes, media_type: str, *, key: UUID | None = None, only_good: bool = False
    ) -> Ingested:
        """Send records. Idempotent by key."""
        ...


class Generating:
    """One generator of one run."""

    def __init__(
        self,
        client: GeneratorClient,
        run: str,
        name: str,
        settings: GeneratorSettings,
        writer: Writer,
        memory: Memory,
        say: Say,
    ) -> None:
        self._client, self._run, self._name, self._settings = client, run, name, settings
        self._writer, self._memory, self._say = writer, memory, say
        self._failures = 0

    def run_until_done(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Work until the budget is used up or the run has ended. Raises `NotAllowed`, and `Damaged`."""
        while True:
            try:
                pause_s = self.look()
            except (Unavailable, Overloaded) as error:
                self._say(f"{error.reason}; retrying")
                pause_s = FIRST_PAUSE_S
            if pause_s is None:
                return
            wait(pause_s)

    def look(self) -> float | None:
        """Do what is due now. Return the seconds until the next look; None: there is nothing more to do."""
        snapshot = self._client.snapshot(self._run)
        if snapshot.closed:
            self._say(f"the run is {snapshot.status}")
            return None
        if self._memory.batch is not None:
            return self._send(self._memory.batch)
        data = self._client.data(self._run)
        target = next((one for one in data.sources if one.name == self._settings.source), None)
        if target is None or target.settings is None:
            return LOOK_EVERY_S
        author = author_of(self._name)
        left = self._settings.max_records - target.by_author.get(author, 0)
        if left <= 0:
            self._say(f"the budget of {self._settings.max_records:,} records is used up")
            return None
        if any(shard.author == author and shard.stage in ("waiting", "announced") for shard in target.shards):
            return LOOK_EVERY_S  # the last batch is not in the mixture yet, or a person is asked
        spot = self._due(self._client.weak_spots(self._run), snapshot.step)
        return (
            LOOK_EVERY_S
            if spot is None
            else self._ask(spot, snapshot.step, min(left, self._settings.records), target, data)
        )

    def _due(self, spots: list[WeakSpot], step: int) -> WeakSpot | None:
        """Return the spot to ask for records for; None: nothing is due."""
        spot, asked = weakest(spots), self._memory.asked_step
        if spot is None or (self._settings.helps and spot.source not in self._settings.helps):
            return None
        every = self._settings.every_steps
        if every is None:
            return spot if spot.step != asked else None
        return spot if asked is None or not 0 <= step - asked < every else None

    def _ask(self, spot: WeakSpot, step: int, count: int, target: SourceView, data: RunData) -> float:
        assert target.settings is not None
        at = spot.step if self._settings.every_steps is None else step
        sources = {one.name: one.settings for one in data.sources if one.settings is not None}
        seed = zlib.crc32(f"{self._run} {self._name} {at}".encode())
        asked = Asked(self._run, self._name, spot, count, seed, target.settings, sources)
        try:
            records = self._writer.write(asked)
        except SteerwayError as error:
            return self._failed(spot, at, error)
        self._failures = 0
        self._memory.keep(at, spot.name, _sayable(records[:count]))
        if self._memory.batch is None:
            self._say(f"step {at}: no records for {spot.name}")
        return 0.0

    def _failed(self, spot: WeakSpot, at: int, error: SteerwayError) -> float:
        self._failures += 1
        self._say(f"no records for {spot.name} at step {at}: {error.reason}")
        if self._failures >= FAILURES or isinstance(error, Refused):
            self._memory.keep(at, spot.name, [])
            self._failures = 0
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures))

    def _send(self, batch: Batch) -> float | None:
        source = self._settings.source
        try:
            answer = self._client.add_records(
                self._run, source, batch.lines.encode(), LINES, key=batch.key, only_good=True
            )
        except RunEnded as error:
            self._say(error.reason)
            return None
        except (Overloaded, NotAllowed):
            raise
        except Refused as error:
            self._say(f"step {batch.step}: the records for {batch.spot} were refused: {error.reason}")
            self._memory.sent()
            return LOOK_EVERY_S
        self._memory.sent()
        more = f", {answer.duplicates:,} known already" if answer.duplicates else ""
        if answer.refused:
            more += f", {answer.refused_count:,} refused (the first: {answer.refused[0].reason})"
        self._say(f"step {batch.step}: {answer.records:,} records for {batch.spot} into {source}{more}")
        return LOOK_EVERY_S


def _sayable(records: list[Record]) -> list[Record]:
    """Return the records that JSON can say: one with a NaN would break the whole body."""
    return [record for record in records if _is_json(record)]


def _is_json(record: Record) -> bool:
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
