"""A process group that does not come about: tried again with growing delays, and given up in the end."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from ray_jobs.driver import process_group
from ray_jobs.driver.process_group import MOST_TRIES, RanksBackend, RanksTorchConfig, wait_or_give_up
from ray_jobs.driver.ray_internals import TorchBackend, WorkerGroupStartupFailedError

MESH = RuntimeError("ray::execute()\n  File x\nRuntimeError: Gloo connectFullMesh failed with ... Connection refused")


def test_delays_grow_and_the_last_failure_is_raised_as_it_is() -> None:
    slept: list[float] = []
    for failures in range(1, MOST_TRIES):
        with pytest.raises(WorkerGroupStartupFailedError, match="connectFullMesh"):
            wait_or_give_up(failures, MESH, slept.append)
    assert slept == [1, 2, 4, 8, 15]
    with pytest.raises(RuntimeError, match="connectFullMesh"):
        wait_or_give_up(MOST_TRIES, MESH, slept.append)
    assert len(slept) == MOST_TRIES - 1


class Group:
    """What `RanksBackend` asks of a worker group."""

    def __init__(self) -> None:
        self.released = False
        self._worker_group_state: Any = SimpleNamespace(workers=[], shutdown=self._release)

    def _release(self) -> None:
        self.released = True

    def _clear_state(self) -> None:
        self._worker_group_state = None

    def execute(self, function: Any) -> list[str | None]:
        return [function()]


@pytest.fixture
def backend() -> RanksBackend:
    """Ray makes one of each process: its count may be an earlier test's."""
    backend = RanksBackend()
    backend._failures = 0
    return backend


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    outcomes: list[Exception | None] = []

    def on_start(self: Any, worker_group: Any, backend_config: Any) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(TorchBackend, "on_start", on_start)
    monkeypatch.setattr(process_group, "choose_interface_of_node", lambda: None)
    monkeypatch.setattr(process_group.time, "sleep", lambda seconds: None)
    return outcomes


def test_a_failed_group_releases_its_resources_and_is_retried(
    backend: RanksBackend, answers: list[Exception | None]
) -> None:
    answers += [MESH, None, MESH]
    for fails in (True, False, True):
        group = Group()
        if fails:
            with pytest.raises(WorkerGroupStartupFailedError):
                backend.on_start(group, None)
        else:
            backend.on_start(group, None)
        assert group.released is fails
    assert backend._failures == 1  # a group that connected has begun the count anew


def test_a_dead_rank_is_left_to_ray_train_and_not_counted(
    backend: RanksBackend, answers: list[Exception | None]
) -> None:
    group = Group()
    answers.append(RayActorError())
    with pytest.raises(RayActorError):
        backend.on_start(group, None)
    assert group.released
    assert backend._failures == 0


def test_ray_train_takes_the_backend_from_the_config() -> None:
    assert isinstance(RanksTorchConfig(backend="gloo").backend_cls(), RanksBackend)
