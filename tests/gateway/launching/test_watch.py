"""The job watch: which runs it closes and with what reason, and what it says of a run's job."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control_plane.api.launching import JobStatus
from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.core.model.records import RunClosed, RunResumed
from control_plane.core.model.state import RunState
from control_plane.gateway.app import create_app
from control_plane.gateway.launching import background
from control_plane.gateway.launching.jobs import RayJob, newest_jobs, summary
from control_plane.gateway.launching.watch import JobWatch
from tests.core import examples
from tests.gateway.rig import HOST, Runs, token_book

MESSAGE = (
    "Job entrypoint command failed with exit code 127, last available logs (truncated to 20,000 chars):\n"
    "a line\nbash: line 1: python9: command not found\n"
)


@dataclass
class FakeRay:
    """Ray's jobs, and runs by their state, which the watch closes."""

    jobs: list[RayJob] = field(default_factory=list)
    states: dict[str, RunState] = field(default_factory=dict)
    closed: list[tuple[str, str]] = field(default_factory=list)
    queued: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None
    asked: int = 0

    async def list(self) -> Sequence[RayJob]:
        """See `JobsOfRay`."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.jobs

    async def state(self, run: str) -> RunState | None:
        """See `WatchedRuns`."""
        state = self.states.get(run)
        if isinstance(state, Exception):
            raise state
        return state

    async def queued_because(self, run: str) -> str | None:
        """See `WatchedRuns`."""
        return self.queued.get(run)

    async def close(self, run: str, reason: str) -> None:
        """See `WatchedRuns`."""
        self.closed.append((run, reason))
        self.states[run] = examples.state_after(CREATED, RunClosed(ending="failed", reason=reason))


def job(run: str, status: JobStatus, message: str = "", name: str = "") -> RayJob:
    return RayJob(name=name or run, run=run, status=status, message=message)


CREATED = examples.created("run-1")
STARTED = examples.started()
CLOSED = RunClosed(ending="stopped")
CASES: dict[str, tuple[RunState, list[RayJob], bool]] = {
    "its command failed": (RunState(), [job("run-1", "failed", MESSAGE)], True),
    "it died in the queue": (examples.state_after(CREATED), [job("run-1", "failed")], True),
    "it was stopped by ray job stop": (examples.state_after(CREATED), [job("run-1", "stopped")], True),
    "it trained": (examples.state_after(CREATED, STARTED), [job("run-1", "failed")], False),
    "it is closed": (examples.state_after(CREATED, CLOSED), [job("run-1", "succeeded")], False),
    "it lives": (examples.state_after(CREATED), [job("run-1", "running")], False),
    "it begins": (RunState(), [job("run-1", "pending")], False),
    "a later job lives": (
        examples.state_after(CREATED),
        [job("run-1", "failed"), job("run-1", "running", name="run-1-r2")],
        False,
    ),
    "a later job died": (
        examples.state_after(CREATED, CLOSED, RunResumed(author="ann")),
        [job("run-1", "stopped"), job("run-1", "failed", name="run-1-r2")],
        True,
    ),
    "it is of somebody else": (RunState(), [RayJob(name="run-1", run=None, status="failed")], False),
}


@pytest.mark.parametrize(("state", "jobs", "is_closed"), CASES.values(), ids=CASES.keys())
def test_run_is_closed_if_its_newest_job_ended_before_it_began(
    state: RunState, jobs: list[RayJob], is_closed: bool
) -> None:
    ray = FakeRay(jobs, {"run-1": state})
    watch = JobWatch(ray, ray)

    async def look_twice() -> None:
        await watch.look()
        await watch.look()

    asyncio.run(look_twice())
    assert [run for run, _ in ray.closed] == ["run-1"] * is_closed


def test_reason_holds_the_message_of_ray() -> None:
    ray = FakeRay([job("run-1", "failed", MESSAGE)], {"run-1": RunState()})
    asyncio.run(JobWatch(ray, ray).look())
    assert ray.closed[0][1] == (
        "Ray job run-1 failed before the run had begun: Job entrypoint command failed with exit code 127: bash: line "
        "1: python9: command not found"
    )
    assert summary("") == ""
    assert summary("failed:\n\x1b[36m(Worker pid=1)\x1b[0m it \x1b[2Jfell") == "failed: (Worker pid=1) it  [2Jfell"
    assert len(summary("x" * 5000)) == 400


def test_unknown_run_or_damaged_journal_or_silent_ray_stops_no_watch(caplog: pytest.LogCaptureFixture) -> None:
    states: Any = {"run-1": Damaged("line 3 is broken"), "run-3": RunState()}
    ray = FakeRay([job(f"run-{number}", "failed") for number in (1, 2, 3)], states)
    watch = JobWatch(ray, ray)
    asyncio.run(watch.look())
    assert [run for run, _ in ray.closed] == ["run-3"]
    assert "line 3 is broken" in caplog.text
    states["run-1"] = Unavailable("the control server does not answer")
    again = JobWatch(ray, ray)
    asyncio.run(again.look())
    states["run-1"] = RunState()
    asyncio.run(again.look())
    assert [run for run, _ in ray.closed] == ["run-3", "run-1"], "what was unavailable is tried again"


def test_job_of_a_run_is_said_with_what_its_run_needs() -> None:
    ray = FakeRay()
    now = [0.0]
    watch = JobWatch(ray, ray, lambda: now[0])

    def asked() -> tuple[str, str | None, str | None, bool]:
        now[0] += 2.0
        view = asyncio.run(watch.job("run-1"))
        return view.status, view.job, view.message, view.is_alive

    assert asked() == ("none", None, None, False)
    ray.jobs = [job("run-1", "running")]
    assert asked() == ("running", "run-1", None, True)
    ray.jobs, ray.states = [job("run-1", "failed", "killed")], {"run-1": examples.state_after(CREATED, STARTED)}
    status, name, message, alive = asked()
    assert (status, name, alive) == ("failed", "run-1", False)
    assert message == (
        "the Ray job of run run-1 has ended (failed), but the run was never closed; restart it with `steer resume "
        "run-1`: killed"
    )
    ray.states = {"run-1": examples.state_after(CREATED, STARTED, CLOSED)}
    assert asked() == ("failed", "run-1", "killed", False)
    ray.error = Unavailable("Ray's dashboard does not answer")
    assert asked() == ("unknown", None, "Ray's dashboard does not answer", True)


def test_run_that_is_queued_again_is_not_closed_and_says_why_it_waits() -> None:
    ray = FakeRay([job("run-1", "failed")], {"run-1": RunState()}, queued={"run-1": "no room: 2 CPUs are missing"})
    watch = JobWatch(ray, ray)
    asyncio.run(watch.look())
    view = asyncio.run(watch.job("run-1"))
    assert (view.status, view.message, view.is_alive) == ("queued", "no room: 2 CPUs are missing", True)
    assert ray.closed == []
    ray.queued.clear()
    asyncio.run(watch.look())
    assert [run for run, _ in ray.closed] == ["run-1"]


def test_many_questions_are_one_to_ray() -> None:
    ray = FakeRay([job("run-1", "running")])
    watch = JobWatch(ray, ray, lambda: 5.0)

    async def many() -> None:
        await asyncio.gather(*(watch.job("run-1") for _ in range(50)))

    asyncio.run(many())
    assert ray.asked == 1


def test_jobs_are_of_the_run_in_their_metadata_whatever_their_names() -> None:
    jobs = [job("x", "failed", name="x-r2"), job("x-r2", "running"), job("x", "running", name="x-r10")]
    assert {run: each.name for run, each in newest_jobs([*jobs, job("y", "failed", name="z")]).items()} == {
        "x": "x-r10",
        "x-r2": "x-r2",
    }


def test_background_work_runs_with_the_app_and_again_after_an_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "AGAIN_AFTER_S", 0.0)
    caplog.set_level(logging.ERROR)
    begun: list[int] = []

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) == 1:
            raise ValueError("planted")
        await asyncio.Event().wait()

    app = create_app(Runs(tmp_path), token_book(), allowed_hosts=[HOST], allowed_origins=[], background=[work])
    with TestClient(app, base_url=f"http://{HOST}:8700") as web:
        assert web.get("/api/v1/health").status_code == 200
        while len(begun) < 2:
            web.get("/api/v1/health")
    assert begun == [0, 1]
    assert "planted" in caplog.text
