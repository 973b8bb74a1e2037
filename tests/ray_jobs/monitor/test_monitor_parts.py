"""The parts of a rank's monitor: the signed lines, what a process leaves behind, and where a thread is."""

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ray_jobs.monitor import ward as monitor_ward
from ray_jobs.monitor.processes import Descendants, is_same, machine, status_of
from ray_jobs.monitor.stacks import Stacks, parse_dump
from ray_jobs.monitor.ward import MonitoredRank, MonitorSettings
from ray_jobs.monitor.watchdog import open_monitor_port
from ray_jobs.monitor.wire import MOST_LINE_BYTES, PeerConnection, PeerError

WAIT_S = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def talk(
    ends: tuple[socket.socket, socket.socket], tokens: tuple[str, str] = ("t", "t")
) -> tuple[PeerConnection, PeerConnection]:
    hub, spoke = (PeerConnection(end, token, end is ends[0]) for end, token in zip(ends, tokens, strict=True))
    hub.flush()
    spoke.flush()
    assert hub.receive() == spoke.receive() == []
    return hub, spoke


def test_wire_hands_over_what_was_said_in_both_directions(ends: tuple[socket.socket, socket.socket]) -> None:
    hub, spoke = talk(ends)
    assert not hub.is_trusted
    spoke.say({"n": 1, "at": "t\udcff.py"})
    spoke.say({"n": 2})
    assert [told["n"] for told in hub.receive()] == [1, 2]
    hub.say({"verdict": None})
    assert spoke.receive() == [{"verdict": None}]
    assert hub.is_trusted


def test_wire_refuses_another_token(ends: tuple[socket.socket, socket.socket]) -> None:
    hub, spoke = talk(ends, ("t", "another"))
    spoke.say({"n": 1})
    with pytest.raises(PeerError, match="token"):
        hub.receive()


def test_wire_refuses_what_was_said_before(ends: tuple[socket.socket, socket.socket]) -> None:
    hub, spoke = talk(ends)
    said = []
    send = spoke.connection.send
    spoke.say({"n": 1})
    assert [told["n"] for told in hub.receive()] == [1]
    body = b'{"n": 1}'
    said.append(spoke._code(b"spoke", 0, body) + b" " + body + b"\n")
    send(said[0])
    with pytest.raises(PeerError, match="token"):
        hub.receive()


@pytest.mark.parametrize(
    "said", [b"x" * (MOST_LINE_BYTES + 1), b"[1]\n", b"GET / HTTP/1.1\r\n\r\n", b'{"nonce": 1}\n', b"\n"]
)
def test_wire_refuses_strangers(ends: tuple[socket.socket, socket.socket], said: bytes) -> None:
    hub = PeerConnection(ends[0], "t", is_hub=True)
    ends[1].send(said)
    with pytest.raises(PeerError):
        hub.receive()


def test_status_is_of_that_very_process() -> None:
    mine = status_of(os.getpid())
    assert mine is not None
    assert (mine.parent, mine.session, mine.state) == (os.getppid(), os.getsid(0), "R")
    assert not is_same(os.getpid(), mine.started + 1)
    assert status_of(2**22 + 1) is None
    with pytest.raises(OSError, match="Not a directory"):
        status_of("self/stat")  # type: ignore[arg-type]
    assert machine()


def test_what_is_left_behind_ends_but_for_a_session_of_its_own() -> None:
    code = (
        "import subprocess, sys, time\n"
        "kept = [subprocess.Popen(['sleep', '60']), subprocess.Popen(['sleep', '60'], start_new_session=True)]\n"
        "print(*(each.pid for each in kept), flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, daemon = map(int, parent.stdout.readline().split())
        offspring = Descendants(parent.pid, os.getsid(0))
        offspring.look()
        parent.kill()
    try:
        assert offspring.end() == [child]
        deadline = time.monotonic() + WAIT_S
        while status_of(child) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert status_of(daemon) is not None
    finally:
        os.kill(daemon, 9)


def test_thread_in_user_code_is_told_with_its_line() -> None:
    over, inside, thread = threading.Event(), threading.Event(), [0]

    def work() -> None:
        thread[0] = threading.get_ident()
        inside.set()
        over.wait(WAIT_S)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        assert inside.wait(WAIT_S)
        spot = Stacks(thread[0], on_devices=True).look()
        over.set()
    assert spot.waits == ""
    assert re.search(r"test_monitor_parts.py:\d+ in work$", spot.at), spot.at
    assert Stacks(1, on_devices=False).look().at == ""


def test_line_is_found_in_what_faulthandler_writes() -> None:
    dump = (
        'Thread 0x00007f00000000aa (most recent call first):\n  File "/other.py", line 1 in other\n\n'
        'Current thread 0x00007f00000000bb (most recent call first):\n  File "/usr/lib/site-packages/re.py", line 9'
        ' in sub\n  File "/code/train.py", line 7 in clean\n'
    )
    assert parse_dump(dump, 0x7F00000000BB) == "at /code/train.py:7 in clean"
    assert parse_dump(dump, 0x7F00000000CC) == ""


class Two:
    """The collectives of one of two ranks that lie on these machines."""

    def __init__(self, rank: int, machines: list[str]) -> None:
        self.rank, self.world_size, self._machines = rank, 2, machines

    def all_gather(self, value: str) -> list[str]:
        return self._machines

    def broadcast_json(self, value: list[object]) -> list[object]:
        return value


@pytest.mark.parametrize(("machines", "address"), [(["a", "a"], "127.0.0.1"), (["a", "b"], "127.0.0.2")])
def test_monitors_meet_on_the_loopback_or_where_the_ranks_meet(
    monkeypatch: pytest.MonkeyPatch, machines: list[str], address: str
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.2")
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    arranged = open_monitor_port(Two(0, machines), "here")  # type: ignore[arg-type]
    assert arranged.listener is not None
    with arranged.listener:
        assert arranged.listener.getsockname() == (address, arranged.port)
    assert open_monitor_port(Two(1, machines), "here").listener is None  # type: ignore[arg-type]
    assert len(arranged.token) == 64


@pytest.fixture
def ward() -> MonitoredRank:
    """This process, as a monitor sees it."""
    orders = MonitorSettings(
        rank=0,
        world_size=1,
        pid=os.getpid(),
        node="here",
        thread=threading.get_ident(),
        signal=None,
        address="",
        port=0,
        token="",
        exit_reason_file="",
        tick_s=0.5,
        hang_after_s=5.0,
        user_code_s=60.0,
        deadlock_s=120.0,
    )
    return MonitoredRank(orders, dump=-1)


def told(beats: int = 1, made: int = 1, waits: str = "collective") -> dict[str, Any]:
    said = {"beats": beats, "made": made, "phase": "training", "waits": waits, "at": "at a.py:1 in f"}
    return said | {"slowest_step_s": 1.0, "over": False}


def test_time_without_progress_is_counted_and_ends_with_a_beat_or_another_collective(ward: MonitoredRank) -> None:
    ward.hear(told())
    for _ in range(4):
        ward.tick(0.5)
        ward.hear(told())
    assert (ward.account.quiet_s, ward.account.inside_s) == (2.0, 2.0)
    ward.hear(told(made=2))
    assert (ward.account.quiet_s, ward.account.inside_s) == (0.0, 0.0)
    ward.tick(0.5)
    ward.hear(told(beats=2, made=2))
    assert ward.account.quiet_s == 0.0


def test_rank_whose_threads_say_nothing_is_in_user_code_and_no_longer_in_a_collective(ward: MonitoredRank) -> None:
    ward.hear(told())
    for _ in range(6):
        ward.tick(0.5)
    account = ward.account
    assert (account.waits, account.inside_s, account.quiet_s, account.gone_s) == ("", 0.0, 3.0, 0.0)


def test_rank_of_which_nothing_can_be_known_is_not_gone(ward: MonitoredRank, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise OSError(errno.EMFILE, "no more files")

    monkeypatch.setattr(monitor_ward, "status_of", refuse)
    ward.tick(0.5)
    assert ward.account.gone_s == 0.0
    monkeypatch.setattr(monitor_ward, "status_of", lambda pid: None)
    ward.tick(0.5)
    assert ward.account.gone_s > 0.0
