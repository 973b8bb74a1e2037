"""Two control servers over the same files: the older one is stopped in the middle of an append, and goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.errors import Fenced
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Disk, read
from tests.server.rig import Rig, command, start

PLACES = ("before the write", "before the sync", "after the sync")


class Stopping:
    """A disk on which the writer is stopped once: somebody else has the run meanwhile."""

    def __init__(self, place: str) -> None:
        self._place, self.meanwhile = place, None

    meanwhile: Callable[[], None] | None

    def _stop(self, place: str) -> None:
        if place == self._place and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()

    def write(self, descriptor: int, data: bytes) -> int:
        self._stop("before the write")
        return Disk().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._stop("before the sync")
        self._stop("after the sync")

    def disk(self) -> Disk:
        return Disk(write=self.write, fsync=self.fsync)


def stale_attempts(root: Path, trial: int) -> int:
    """One takeover; answers how often the older server tried to write after it, in vain each time."""
    stopping = Stopping(PLACES[trial % len(PLACES)])
    older = Rig(root, stopping.disk()).serve(clocked=False)
    newer: list[ControlServer] = []

    def take_over() -> None:
        server = Rig(root).serve(clocked=False)
        newer.append(server)
        told(server.submit(command(50)))
        told(server.start_generation(start(2)))

    told(older.start_generation(start()))
    for number in range(trial % 4):
        told(older.submit(command(number + 1)))
    stopping.meanwhile = take_over
    confirmed = [40] if told(older.submit(command(40))) else []
    assert newer, "nobody took over"
    told(newer[0].submit(command(51)))
    seen = [entry.line() for entry in read(Rig(root).journal_dir)]
    attempts: list[Callable[[], Any]] = [
        lambda: older.submit(command(60)),
        lambda: older.end_generation(1, "failed", 9, None),
        lambda: older.start_generation(start(3)),
        lambda: older.close("failed", None),
    ]
    refused = sum(told(attempt()) is None for attempt in attempts)
    assert [entry.line() for entry in read(Rig(root).journal_dir)] == seen
    uuids = {line["uuid"] for line in seen if line["type"] == "CommandAccepted"}
    assert all(str(command(number).uuid) in uuids for number in (50, 51, *confirmed))
    return refused


def told(request: Any) -> Any:
    """The answer; None if the server was fenced. Nothing here waits, so that no event loop is needed."""
    try:
        request.send(None)
    except StopIteration as end:
        return end.value or True
    except Fenced:
        return None
    raise AssertionError("the server waits for something")


def test_server_that_goes_on_after_a_takeover_writes_nothing(tmp_path: Path) -> None:
    assert sum(stale_attempts(tmp_path / str(trial), trial) for trial in range(12)) == 12 * 4


@pytest.mark.slow
def test_server_that_goes_on_after_hundreds_of_takeovers_writes_nothing(tmp_path: Path) -> None:
    assert sum(stale_attempts(tmp_path / str(trial), trial) for trial in range(250)) == 250 * 4
