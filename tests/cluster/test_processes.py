"""Which processes belong to a cluster, and how they end."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cluster.environment import MARK
from cluster.processes import ProcessMark, end_members, find_members

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
PARENT_OF_UNMARKED = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={}, start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)"
)


@pytest.fixture
def cluster() -> Iterator[str]:
    """A cluster's id; whatever carries it is ended afterwards."""
    name = secrets.token_hex(8)
    yield name
    assert end_members(name) == []


def start(cluster: str, program: str) -> "subprocess.Popen[str]":
    environment = dict(os.environ) | {MARK: cluster}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_marked_process_is_found_and_others_are_not(cluster: str) -> None:
    process = start(cluster, STUBBORN)
    assert first_line(process) == "ready"
    assert [found.pid for found in find_members(cluster)] == [process.pid]
    assert find_members(secrets.token_hex(8)) == []


def test_process_that_ignores_sigterm_is_killed(cluster: str) -> None:
    process = start(cluster, STUBBORN)
    assert first_line(process) == "ready"
    assert end_members(cluster) == []
    assert not psutil.pid_exists(process.pid)


def test_descendant_without_the_mark_ends_with_its_root(cluster: str) -> None:
    process = start(cluster, PARENT_OF_UNMARKED)
    child = psutil.Process(int(first_line(process)))
    assert end_members(cluster, [ProcessMark.of(process.pid)]) == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_mark_of_an_earlier_process_with_the_same_pid_is_not_trusted() -> None:
    later = ProcessMark(pid=os.getpid(), created_s=psutil.Process().create_time() - 100)
    assert later.process() is None


def test_whoever_asks_is_not_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [ProcessMark.of(os.getpid())]
    assert os.getpid() not in [process.pid for process in find_members("nobody", marks)]
