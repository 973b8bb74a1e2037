"""A real cluster for tests: Ray, the gateway and the console, on ports of its own, in a home of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.records import Entry
from tests.ports import free_ports

REPOSITORY = Path(__file__).parents[2]
CONTROL_ACTOR = "ray::ControlActor"
UP_WITHIN_S = 240
RUN_WITHIN_S = 240


class Cluster:
    """What a test does with a cluster."""

    def __init__(self, home: Path) -> None:
        names = ("GATEWAY_PORT", "CONSOLE_PORT", "RAY_PORT", "DASHBOARD_PORT")
        ports = {f"STEERWAY_{name}": str(port) for name, port in zip(names, free_ports(4), strict=True)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STEERWAY_")}
        self.environment = inherited | ports | {"STEERWAY_HOME": str(home)}
        self.settings: Settings = settings(self.environment)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=UP_WITHIN_S,
            check=False,
        )

    def submit(self, *arguments: str) -> str:
        done = self.command("ray_jobs.submit", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout.splitlines()[-1])["run"])

    def client(self) -> SteerwayClient:
        return SteerwayClient.from_settings(self.settings)

    def processes(self) -> list[psutil.Process]:
        """This cluster's processes, found by the mark that all of them carry: another may run beside it."""
        mark = json.loads(self.settings.cluster_file.read_text())["cluster"]
        return [process for process in psutil.process_iter() if _environ(process).get("STEERWAY_CLUSTER") == mark]

    def control_actors(self) -> list[psutil.Process]:
        """The processes of this cluster's control actors."""
        return [process for process in self.processes() if _title(process).startswith(CONTROL_ACTOR)]

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What `steer nodes` says, by name."""
        done = self.command("cluster.local", "nodes", "--json")
        assert done.returncode == 0, done.stderr
        return {str(node["name"]): node for node in json.loads(done.stdout)}

    def logs(self, run: str) -> str:
        folder = self.settings.runs_dir / run / "logs"
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log")))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@contextmanager
def running(home: Path, nodes: int = 1) -> Iterator[Cluster]:
    """Up with so many Ray nodes, and down again whatever happens."""
    cluster = Cluster(home)
    try:
        up = cluster.command("cluster.local", "up", f"--nodes={nodes}")
        assert up.returncode == 0, up.stderr
        yield cluster
    finally:
        down = cluster.command("cluster.local", "down")
        assert down.returncode == 0, down.stderr


def wait_for(what: str, ready: Any, within_s: float = RUN_WITHIN_S) -> Any:
    """Poll until `ready()` answers something true."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        answer = ready()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen within {within_s:.0f} s")


def wait_for_step(cluster: Cluster, client: SteerwayClient, run: str, step: int) -> Snapshot:
    def there() -> Snapshot | None:
        snapshot = client.snapshot(run)
        assert not snapshot.closed or snapshot.step >= step, f"{snapshot.reason}\n{cluster.logs(run)}"
        return snapshot if snapshot.step >= step else None

    return wait_for(f"step {step} of {run}", there)  # type: ignore[no-any-return]


def wait_closed(client: SteerwayClient, run: str) -> Snapshot:
    def closed() -> Snapshot | None:
        snapshot = client.snapshot(run)
        return snapshot if snapshot.closed else None

    return wait_for(f"the end of {run}", closed)  # type: ignore[no-any-return]


def whole_journal(client: SteerwayClient, run: str) -> list[Entry]:
    entries: list[Entry] = []
    while page := client.journal(run, after=len(entries)):
        entries += page
    return entries


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
