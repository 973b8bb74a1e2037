"""A service of the cluster that stands still is ended after a while, and nothing else is."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from cluster.stopped import STOPPED_FOR_S, StoppedServices

WITHIN_S = 20.0


class Stage:
    """Processes of chosen titles, and what is said of them."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.said: list[str] = []
        self.now_s = 0.0
        self.asked = 0
        self.services = StoppedServices(self.members, self.said.append, lambda: self.now_s)

    def members(self) -> list[psutil.Process]:
        self.asked += 1
        return [psutil.Process(each.pid) for each in self.started]

    def start(self, title: str, stopped: bool = True) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([title, "300"], executable="/bin/sleep")
        if stopped:
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        self.started.append(process)
        return process

    def look_twice(self, own: int | None = None, seconds: float = STOPPED_FOR_S) -> None:
        self.services.look(own)
        self.now_s += seconds
        self.services.look(own)


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("title", ["ray::ProxyActor", "ray::ServeReplica:gateway:gateway", "ray::ControlActor"])
def test_service_that_stands_still_is_ended(stage: Stage, title: str) -> None:
    process = stage.start(title)
    stage.look_twice()
    assert process.wait(WITHIN_S) == -signal.SIGKILL
    assert f"{title} 300 (process {process.pid}) was stopped for 3 s" in stage.said[0]


def test_program_of_the_keeper_is_ended_whatever_its_title(stage: Stage) -> None:
    process = stage.start("console")
    stage.look_twice(own=process.pid)
    assert process.wait(WITHIN_S) == -signal.SIGKILL


def test_what_is_stopped_for_a_moment_is_let_be(stage: Stage) -> None:
    process = stage.start("ray::ServeController")
    stage.look_twice(seconds=STOPPED_FOR_S - 1)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: psutil.Process(process.pid).status() != psutil.STATUS_STOPPED)
    stage.services.look()
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    stage.look_twice(seconds=STOPPED_FOR_S - 1)
    assert process.poll() is None
    assert stage.said == []


@pytest.mark.parametrize("title", ["ray::_RayTrainWorker__execute", "python train.py", "raylet"])
def test_ranks_scripts_and_ray_itself_are_let_be(stage: Stage, title: str) -> None:
    process = stage.start(title)
    stage.look_twice()
    assert process.poll() is None


def test_service_of_another_cluster_is_let_be(stage: Stage) -> None:
    process = stage.start("ray::ProxyActor")
    other = StoppedServices(list, stage.said.append, lambda: stage.now_s)
    other.look()
    stage.now_s += STOPPED_FOR_S
    other.look()
    assert (process.poll(), stage.said) == (None, [])


def test_members_are_asked_only_while_something_is_stopped(stage: Stage) -> None:
    stage.start("ray::ProxyActor", stopped=False)
    stage.look_twice()
    assert stage.asked == 0
