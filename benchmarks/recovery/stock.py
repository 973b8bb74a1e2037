"""Stock arm of the recovery benchmark: three plain Ray nodes with Ray's defaults, and a plain training on them.

As in Steerway's arm the head has no CPUs, and each other node as many as the machine. The other options of `ray start`
only let several nodes share one machine: ports, a temporary folder, a smaller object store.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS
from benchmarks.recovery.diary import latest, read_processes
from benchmarks.recovery.faults import kill_all
from benchmarks.recovery.ours import JOIN_TRIES
from cluster.environment import MARK, NODE_MARK
from cluster.nodes import OBJECT_STORE_BYTES, cpus_of_node
from cluster.parts import free_port
from cluster.processes import ProcessMark, end_processes, find_carriers
from control_plane.core.model.errors import SteerwayError

SCRIPT = Path(__file__).parents[1] / "scripts" / "stock_recovery.py"
HEAD = "node-1"
NODES = 3
NODE_WAIT_S = 120.0
JOINED = "Ray runtime started"
"""Output of `ray start` when its node has joined."""


class Stock:
    """Arm with one training on a cluster of its own."""

    name = "stock"

    def __init__(self, folder: Path, save_steps: int, say: Say) -> None:
        self.folder, self._save_steps = folder, save_steps
        self._mark = secrets.token_hex(8)
        self._say = say
        self._nodes: dict[str, ProcessMark] = {}
        self._driver: subprocess.Popen[bytes] | None = None
        self._address = ""

    def start(self) -> None:
        """Start the cluster and its training. Raises `SteerwayError` with the end of a log if a node does not start."""
        (self.folder / "ray-token").write_text(secrets.token_hex(32))
        host = "127.0.0.1"
        port = free_port(host, set())
        client_port = free_port(host, {port})
        dashboard_port = free_port(host, {port, client_port})
        self._start_node(
            "--head",
            "--num-cpus=0",
            f"--port={port}",
            f"--ray-client-server-port={client_port}",
            f"--dashboard-port={dashboard_port}",
        )
        self._address = f"{host}:{port}"
        for _ in range(NODES - 1):
            self._add_node()
        given = (str(self.folder), self._address, str(RANKS), str(self._save_steps))
        self._driver = self._run("driver", HEAD, str(SCRIPT), *given)

    def end(self) -> None:
        """End all of its processes. Raises `SteerwayError` if one survives."""
        driver = [ProcessMark.of(self._driver.pid)] if self._driver and self._driver.poll() is None else []
        roots = [*self._nodes.values(), *driver]
        left = end_processes(lambda: find_carriers({MARK: self._mark}, roots, str(self.folder)))
        if left:
            raise SteerwayError(f"these processes cannot be killed: {', '.join(map(str, left))}")

    def complaint(self) -> str | None:
        """Return the reason why the training has ended, with the end of its log, or None."""
        ended = self._driver is None or self._driver.poll() is not None
        return f"the driver of the stock training has ended\n{self.log()}" if ended else None

    def log(self) -> str:
        """Return the end of the driver's log."""
        return "\n".join((self.folder / "driver.log").read_text(errors="replace").splitlines()[-25:])

    def ranks_by_node(self) -> dict[str, list[int]]:
        """Return the pids of the ranks, by the name of their node."""
        pids = {process.pid for process in latest(read_processes(self.folder)).values()}
        members = {name: {process.pid for process in self._members(name)} for name in self._nodes}
        return {name: sorted(here & pids) for name, here in members.items() if here & pids}

    def kill_node(self, name: str) -> float:
        """Kill all processes of a node at once, and return the Unix time."""
        return kill_all(lambda: self._members(name))

    def phases(self, killed_s: float) -> tuple[float, float | None, float | None]:
        """Return the Unix time of the detection by Ray Train's controller; the rest is in the diaries."""
        path = self.folder / "detected.jsonl"
        detected = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        since = [failure for failure in detected if failure["at_s"] >= killed_s]
        self._say(f"recovery: stock: {since}")
        return (since[0]["at_s"] if since else killed_s), None, None

    def mend(self, node_lost: bool) -> bool:
        """Replace a lost node. There are no spares to wait for."""
        if node_lost:
            self._add_node()
        return True

    def _add_node(self) -> None:
        for left in reversed(range(JOIN_TRIES)):
            try:
                self._start_node(f"--address={self._address}", f"--num-cpus={cpus_of_node()}")
                return
            except SteerwayError as error:
                if not left:
                    raise
                self._say(f"recovery: stock: a node did not join, trying once more: {error.reason.splitlines()[0]}")

    def _start_node(self, *options: str) -> None:
        name = f"node-{len(self._nodes) + 1}"
        shared = (
            "--block",
            "--disable-usage-stats",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.folder / name}",  # shared, each node's log monitor would print every node's logs
        )
        started = self._run(name, name, "-m", "ray.scripts.scripts", "start", *shared, *options)
        self._nodes[name] = ProcessMark.of(started.pid)
        log, deadline = self.folder / f"{name}.log", time.monotonic() + NODE_WAIT_S
        while JOINED not in log.read_text(errors="replace"):
            if started.poll() is not None or time.monotonic() > deadline:
                end_processes(lambda: self._members(name))
                raise SteerwayError(f"the stock {name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)

    def _run(self, log: str, node: str, *arguments: str) -> "subprocess.Popen[bytes]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "STEERWAY_"))}
        own = {
            MARK: self._mark,
            NODE_MARK: node,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray-token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
        }
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *arguments],
                env=inherited | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _members(self, name: str) -> list[psutil.Process]:
        return find_carriers({MARK: self._mark, NODE_MARK: name}, [self._nodes[name]])


@contextmanager
def stock(say: Say, save_steps: int) -> Iterator[Stock]:
    """Start the cluster and its training; end both, and remove all of their files, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="stock-", dir="/tmp"))  # short: Ray's sockets lie in it
    arm = Stock(folder, save_steps, say)
    try:
        say("stock: starting three Ray nodes and the training ..")
        arm.start()
        yield arm
    finally:
        arm.end()
        shutil.rmtree(folder, ignore_errors=True)
