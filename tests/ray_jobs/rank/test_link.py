"""Rank 0's link against control servers that come, go and refuse: outcomes get through, training never waits."""

import threading
import time
from typing import Any
from uuid import uuid4

import pytest

from control_plane.api.messages import Offer, Point, Report
from control_plane.core.model.commands import Command, Pause
from control_plane.core.model.errors import Conflict, RunEnded, Unavailable
from control_plane.core.model.records import CommandSettled, StateDigested
from control_plane.core.rules.decisions import GenerationStart
from ray_jobs.rank import link as links
from ray_jobs.rank.link import Link
from ray_jobs.rank.telemetry import Telemetry

START = GenerationStart(uuid4(), (), 0, 100, {"lr": [1e-3]}, {})


class FakeHandle:
    """A control server: `away` makes every call fail, `refused` names outcomes that it will not take."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.refused: set[Any] = set()
        self.pending: tuple[Command, ...] = ()
        self.taken: list[CommandSettled] = []
        self.points: list[Point] = []
        self.digests: list[StateDigested] = []
        self.ended: tuple[Any, ...] | None = None

    def _answer(self) -> None:
        if self.away.is_set():
            raise Unavailable("away")

    async def start_generation(self, start: GenerationStart) -> int:
        self._answer()
        return 3

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        import asyncio

        self._answer()
        await asyncio.sleep(0.01)
        return Offer(commands=self.pending, revision=len(self.pending))

    async def report(self, report: Report) -> None:
        self._answer()
        if any(outcome.uuid in self.refused for outcome in report.outcomes):
            raise Conflict("settled otherwise before")
        self.taken += report.outcomes
        self.points += report.points
        self.digests += report.digests

    async def end_generation(self, *ending: Any) -> None:
        self._answer()
        self.ended = ending


def outcome() -> CommandSettled:
    return CommandSettled(uuid=uuid4(), status="applied", step=1, generation=3)


def wait_until(ready: Any) -> None:
    deadline = time.monotonic() + 20
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ready()


def opened(handle: FakeHandle) -> Link:
    link = Link(lambda: handle)  # type: ignore[arg-type,return-value]
    assert link.start(START) == (3, None)
    return link


def test_link_offers_follow_the_control_server() -> None:
    handle = FakeHandle()
    link = opened(handle)
    command = Command(uuid=uuid4(), author="t", intent=Pause())
    handle.pending = (command,)
    wait_until(lambda: link.offers() == (command,))
    link.close("finished", 7, None)
    assert handle.ended == (3, "finished", 7, None)


def test_link_keeps_outcomes_while_the_control_server_is_away() -> None:
    handle = FakeHandle()
    link = opened(handle)
    handle.away.set()
    told = [outcome() for _ in range(5)]
    for one in told:
        link.report([one])
    time.sleep(0.1)
    assert handle.taken == []
    handle.away.clear()
    wait_until(lambda: len(handle.taken) >= len(told))
    assert handle.taken == told
    link.close("finished", 7, None)


def test_link_leaves_out_the_one_piece_that_is_refused() -> None:
    handle = FakeHandle()
    link = opened(handle)
    handle.away.set()
    told = [outcome() for _ in range(3)]
    handle.refused = {told[1].uuid}
    link.report(told)
    link.measure([Point(step=1, name="loss", value=2.0, time_s=0.0)])
    handle.away.clear()
    wait_until(lambda: len(handle.taken) == 2 and handle.points)
    link.close("finished", 7, None)
    assert handle.taken == [told[0], told[2]]


def test_link_close_flushes_outcomes_and_points() -> None:
    handle = FakeHandle()
    link = opened(handle)
    told = [outcome() for _ in range(50)]
    link.report(told)
    link.measure([Point(step=i, name="loss", value=float("nan"), time_s=0.0) for i in range(5000)])
    link.close("stopped", 9, "asked")
    assert handle.taken == told
    assert len(handle.points) == 5000


def test_link_start_that_is_refused_says_why() -> None:
    class Closed(FakeHandle):
        async def start_generation(self, start: GenerationStart) -> int:
            raise RunEnded("the run is over")

    generation, reason = Link(lambda: Closed()).start(START)  # type: ignore[arg-type,return-value]
    assert generation == 0
    assert reason is not None
    assert "the run is over" in reason


def test_link_start_waits_for_a_control_server_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "RETRY_S", 0.01)
    handle = FakeHandle()
    handle.away.set()
    threading.Timer(0.1, handle.away.clear).start()
    link = opened(handle)
    link.close("finished", 0, None)
    assert handle.ended == (3, "finished", 0, None)


def test_telemetry_that_overflows_drops_the_oldest_and_counts_them() -> None:
    telemetry = Telemetry(max_points=10)
    telemetry.put([Point(step=i, name="loss", value=1.0, time_s=0.0) for i in range(8)])
    telemetry.put([Point(step=i, name="loss", value=1.0, time_s=0.0) for i in range(8, 13)])
    points, dropped = telemetry.take()
    assert [point.step for point in points] == list(range(3, 13))
    assert dropped == 3


def test_link_close_flushes_more_digests_than_one_report_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_DIGESTS", 500)
    handle = FakeHandle()
    link = opened(handle)
    told = [StateDigested(generation=3, step=step, ranks=("a",), samples="s") for step in range(510)]
    handle.away.set()
    for each in told:
        link.digest(each)
    handle.away.clear()
    link.close("finished", 510, None)
    assert handle.digests == told[:500]
