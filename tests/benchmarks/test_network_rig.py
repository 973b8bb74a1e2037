"""The rig of machines: what each has of its own, what a fault of its link does, and that nothing of it stays."""

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.network.machines import Machine, Rig
from benchmarks.network.requirements import reason_against

REASON = reason_against()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("0.0.0.0", 5000), Echo).serve_forever()
"""
TRIP = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 5000), 1)
peer.settimeout(10)
began, size, left = time.monotonic(), int(sys.argv[2]), int(sys.argv[2])
peer.sendall(b"x" * size)
while left:
    left -= len(peer.recv(65536))
print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.machine("head")
        rig.machine("worker")
        rig.machine("laptop", shares=False)
        rig.machines["worker"].start("python", "-ISc", ECHO)
        yield rig


def trip_s(rig: Rig, size: int = 1000) -> float | None:
    """Seconds for so many bytes from the head to the worker and back; None if they cannot connect."""
    done = rig.machines["head"].run("python", "-ISc", TRIP, rig.machines["worker"].address, str(size))
    return float(done.stdout) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def link(rig: Rig) -> Machine:
    for _ in range(100):
        if trip_s(rig) is not None:
            return rig.machines["worker"]
        time.sleep(0.05)
    raise AssertionError("the worker does not answer")


def test_a_machine_has_its_own_name_processes_and_folders(rig: Rig) -> None:
    worker = rig.machines["worker"]
    assert worker.run("hostname").stdout == "worker\n"
    assert "127.0.1.1 worker\n" in worker.run("cat", "/etc/hosts").stdout
    assert len(worker.run("sh", "-c", "ls -d /proc/[0-9]*").stdout.split()) < 10
    worker.run("sh", "-ec", "mkdir /tmp/ray; touch /tmp/ray/here /dev/shm/here $HOME/here")
    assert rig.machines["head"].run("sh", "-c", "ls /tmp /dev/shm $HOME").stdout.count("here") == 0


def test_the_laptop_does_not_see_the_shared_folder(rig: Rig) -> None:
    rig.machines["worker"].run("sh", "-c", "echo yes > /srv/shared/file")
    assert rig.machines["head"].run("cat", "/srv/shared/file").stdout == "yes\n"
    assert (rig.shared / "file").read_text() == "yes\n"
    laptop = rig.machines["laptop"].run("ls", "/srv/shared", str(rig.shared))
    assert laptop.returncode == 2
    assert laptop.stdout == ""


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_a_cut_link_passes_nothing_until_it_heals(rig: Rig, link: Machine, direction: str) -> None:
    link.link.cut(direction)  # type: ignore[arg-type]
    try:
        assert trip_s(rig) is None
        assert "state UP" in link.run("ip", "link", "show", "eth0").stdout
    finally:
        link.link.heal()
    assert trip_s(rig) is not None


def test_delay_and_loss_slow_a_link_and_heal_undoes_them(rig: Rig, link: Machine) -> None:
    link.link.delay(100)
    delayed = trip_s(rig)
    link.link.loss(5)
    # One of twenty connections of this length may not come about at all.
    lossy = trip_s(rig, 1 << 20) or trip_s(rig, 1 << 20)
    link.link.heal()
    healed = trip_s(rig)
    assert delayed is not None
    assert delayed >= 0.2
    assert lossy is not None
    assert lossy >= 0.2
    assert healed is not None
    assert healed < 0.1


def test_nothing_stays_of_a_rig_whose_maker_was_killed() -> None:
    script = (
        "import sys, time; from benchmarks.network.machines import Rig; rig = Rig(); worker = rig.machine('worker'); "
        "worker.start('sleep', '1000'); worker.link.delay(1); print(rig.folder, worker.pid, flush=True); time.sleep(99)"
    )
    maker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    folder, pid = maker.stdout.readline().split()
    members = psutil.Process(maker.pid).children(recursive=True)
    assert {int(pid)} < {process.pid for process in members}
    maker.kill()
    maker.wait()
    _, alive = psutil.wait_procs(members, timeout=10)
    assert not alive
    subprocess.run(["rm", "-r", folder], check=True)
