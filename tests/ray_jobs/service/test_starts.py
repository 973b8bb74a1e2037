"""Starts of runs: handed over at once where there is room, queued with a reason where not, each job submitted once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from control_plane.config import Settings
from control_plane.core.model.errors import Conflict, Refused, Unavailable
from control_plane.core.rules.capacity import ClusterState, Demand, Node
from control_plane.runs.queue_files import QueueEntry, QueueFolder
from control_plane.runs.quotas import change_quota
from ray_jobs.config.run_config import load
from ray_jobs.service import starts
from ray_jobs.service.starts import NotTaken, Starts
from tests.ray.cluster import REPOSITORY


class Crash(BaseException):
    """The end of the process."""


@dataclass
class FakeRay:
    """Jobs of a cluster with some CPUs. Implements `starts.Jobs`, and reads as the cluster."""

    cpus: float = 2.0
    jobs: dict[str, UUID] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    submissions: list[str] = field(default_factory=list)
    before_submit: Callable[[], None] = lambda: None
    after_submit: Callable[[], None] = lambda: None

    def living(self) -> list[str]:
        return [job for job in self.jobs if job not in self.ended]

    def find(self, entry: QueueEntry) -> str | None:
        return next((job for job, request in self.jobs.items() if request == entry.request), None)

    def submit(self, entry: QueueEntry) -> str:
        if (job := self.find(entry)) is not None:
            return job
        self.before_submit()
        job = f"{entry.run}-job"
        self.jobs[job], self.demands[job] = entry.request, entry.demand
        self.submissions.append(entry.run)
        self.after_submit()
        return job

    def read(self) -> ClusterState:
        held = sum(self.demands[job].needed("CPU") for job in self.placed - self.ended)
        node = Node("a", {"CPU": self.cpus}, {"CPU": self.cpus - held}, {})
        return ClusterState((node,), (), frozenset(self.placed - self.ended))


@dataclass
class Rig:
    """Starts on a fake cluster."""

    home: Path
    ray: FakeRay = field(default_factory=FakeRay)
    now_s: float = 1000.0

    def starts(self) -> Starts:
        """As a new process sees it."""
        return Starts(Settings(home=self.home), self.ray, self.ray.read, lambda: self.now_s)

    def entry(self, run: str, cpus: int = 1, owner: str = "ana", priority: int = 0, **more: Any) -> QueueEntry:
        self.now_s += 1
        demand = Demand(count=cpus, most=cpus, per_rank={"CPU": 1.0})
        body = {"request": uuid4(), "owner": owner, "priority": priority, "since_s": self.now_s, "demand": demand}
        return QueueEntry.model_validate({"run": run} | body | more)

    def state(self, run: str) -> str | None:
        entry = QueueFolder(self.home).entry(run)
        return None if entry is None else entry.state


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_three_runs_of_two_owners_on_room_for_two(rig: Rig) -> None:
    one, two = rig.starts().start_or_queue(rig.entry("one")), rig.starts().start_or_queue(rig.entry("two", owner="ben"))
    three = rig.starts().start_or_queue(rig.entry("three"))
    assert (one.job, two.job, three.job) == ("one-job", "two-job", None)
    assert three.queued_because == "needs 1 CPU, 0 free"
    rig.ray.placed |= {"one-job", "two-job"}
    assert rig.starts().start_waiting() == []
    rig.ray.ended.add("one-job")
    assert [run.run for run in rig.starts().start_waiting()] == ["three"]
    assert (rig.state("one"), rig.state("two"), rig.state("three")) == (None, "handed_over", "handed_over")
    assert rig.ray.submissions == ["one", "two", "three"]


def test_quotas_of_owners_hold_back_and_name_themselves(rig: Rig) -> None:
    rig.ray.cpus = 8.0
    change_quota(rig.home, "ana", {"runs": 1})
    assert rig.starts().start_or_queue(rig.entry("one")).job
    assert rig.starts().start_or_queue(rig.entry("two")).queued_because == "quota of ana: 1 of 1 runs"
    assert rig.starts().start_or_queue(rig.entry("three", owner="ben")).job
    change_quota(rig.home, "ana", {"runs": 2})
    assert [run.run for run in rig.starts().start_waiting()] == ["two"]


def test_higher_priority_starts_first(rig: Rig) -> None:
    rig.starts().start_or_queue(rig.entry("busy", 2))
    rig.starts().start_or_queue(rig.entry("low"))
    rig.starts().start_or_queue(rig.entry("high", priority=5))
    rig.ray.ended.add("busy-job")
    rig.ray.cpus = 1.0
    assert [run.run for run in rig.starts().start_waiting()] == ["high"]


def test_a_run_that_recovers_keeps_its_room(rig: Rig) -> None:
    """Its placement group is gone while it starts again, and its CPUs look free."""
    rig.starts().start_or_queue(rig.entry("one", 2))
    rig.ray.placed.add("one-job")
    rig.starts().start_or_queue(rig.entry("two"))
    rig.ray.placed.clear()
    assert rig.starts().start_waiting() == []
    assert rig.ray.submissions == ["one"]


def test_a_repeated_request_is_the_same_start(rig: Rig) -> None:
    entry = rig.entry("one", 2)
    first = rig.starts().start_or_queue(entry)
    assert rig.starts().start_or_queue(entry) == first
    waiting = rig.entry("two")
    queued = rig.starts().start_or_queue(waiting)
    rig.now_s += 60
    assert rig.starts().start_or_queue(waiting) == queued
    assert QueueFolder(rig.home).entry("two").since_s == waiting.since_s  # type: ignore[union-attr]
    with pytest.raises(Conflict, match="in the queue already"):
        rig.starts().start_or_queue(rig.entry("two"))
    assert rig.ray.submissions == ["one"]


@pytest.mark.parametrize("when", ["before_submit", "after_submit", "after_entry"])
@pytest.mark.parametrize("again", ["start_waiting", "start_or_queue"])
def test_a_process_that_dies_while_it_starts_a_run_leaves_one_job(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str, again: str
) -> None:
    def crash(*_: object) -> None:
        raise Crash

    entry = rig.entry("one", 2)
    with monkeypatch.context() as patched:
        if when == "after_entry":
            patched.setattr(starts, "reach", crash)
        else:
            setattr(rig.ray, when, crash)
        with pytest.raises(Crash):
            rig.starts().start_or_queue(entry)
    rig.ray.before_submit = rig.ray.after_submit = lambda: None
    for _ in range(2):
        if again == "start_waiting":
            rig.starts().start_waiting()
        else:
            rig.starts().start_or_queue(entry)
    assert rig.ray.submissions == ["one"]
    assert rig.state("one") == "handed_over"


def test_an_interrupted_start_whose_job_ray_has_is_not_queued_for_its_own_room(rig: Rig) -> None:
    entry = rig.entry("one", 2)

    def crash() -> None:
        raise Crash

    rig.ray.after_submit = crash
    with pytest.raises(Crash):
        rig.starts().start_or_queue(entry)
    rig.ray.placed.add("one-job")
    assert rig.starts().start_waiting() == []
    assert rig.state("one") == "handed_over"


def test_a_job_that_ray_does_not_take_leaves_no_entry(rig: Rig) -> None:
    def refuse() -> None:
        raise NotTaken(Refused("the config is not signed"))

    rig.ray.before_submit = refuse
    with pytest.raises(NotTaken):
        rig.starts().start_or_queue(rig.entry("one"))
    assert rig.state("one") is None


def test_a_queued_run_that_ray_does_not_take_is_tried_again_later_and_holds_up_nobody(rig: Rig) -> None:
    rig.starts().start_or_queue(rig.entry("busy", 2))
    rig.starts().start_or_queue(rig.entry("one"))
    rig.starts().start_or_queue(rig.entry("two"))
    rig.ray.ended.add("busy-job")

    def refuse_once() -> None:
        rig.ray.before_submit = lambda: None
        raise Unavailable("Ray does not answer")

    rig.ray.before_submit = refuse_once
    assert [run.run for run in rig.starts().start_waiting()] == ["two"]
    assert QueueFolder(rig.home).entry("one").reason == "could not be handed to Ray: Ray does not answer"  # type: ignore[union-attr]
    assert rig.starts().start_waiting() == []
    rig.now_s += starts.TRY_AGAIN_AFTER_S + 1
    assert [run.run for run in rig.starts().start_waiting()] == ["one"]


def test_runs_of_a_cluster_that_is_gone_hold_nothing_and_queued_ones_start_on_the_new_one(rig: Rig) -> None:
    rig.starts().start_or_queue(rig.entry("one", 2))
    rig.starts().start_or_queue(rig.entry("two", 2))
    rig.ray.jobs.clear()
    rig.ray.placed.clear()
    assert [run.run for run in rig.starts().start_waiting()] == ["two"]
    assert rig.state("one") is None


def test_what_can_never_start_is_refused(rig: Rig) -> None:
    config = load(REPOSITORY / "configs/gpt2-local.yaml", ("scaling.ranks=3", "training.gradient_accumulation_steps=1"))
    with pytest.raises(Refused, match=r"needs 3 CPUs \(3 ranks with 1 CPU each\), the cluster has 2"):
        rig.starts().check(config, "ana", wait_for_nodes=False)
    room = rig.starts().check(config, "ana", wait_for_nodes=True)
    assert (room.demand.count, room.notes) == (3, ())
    small = load(REPOSITORY / "configs/gpt2-local.yaml", ("scaling.placement=spread",))
    assert "2 ranks on 1 node" in rig.starts().check(small, "ana", wait_for_nodes=False).notes[0]
    change_quota(rig.home, "ana", {"cpus": 1.0})
    with pytest.raises(Refused, match=r"quota of ana: .* it could never start"):
        rig.starts().check(small, "ana", wait_for_nodes=True)
    change_quota(rig.home, "ben", {"bytes": 0})
    with pytest.raises(Refused, match="quota of ben: the files"):
        rig.starts().check(small, "ben", wait_for_nodes=False)
