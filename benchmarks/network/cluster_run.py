"""Ray cluster and one run on the rig: a head without CPUs, workers with one, and a run of two ranks with diaries."""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.network.machines import SHARED, Machine, Rig
from benchmarks.network.ray_start import ray_start
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import Entry, GenerationStarted
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from ray_jobs.submit import worker_environment

RANKS = 2
RUN = "rig"
STEERWAY_HOME = SHARED / "steerway"
START_TIMEOUT_S = 20.0
SCRIPT = Path(__file__).parents[1] / "scripts" / "steered_recovery.py"

PREPARE = """
import sys
from pathlib import Path
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare
prepare(load(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
"""
DEAD_NODES = """
import json
from ray.util.state import list_nodes
times = {}
for node in sorted(list_nodes(detail=True), key=lambda node: node.end_time_ms or 0):
    if node.end_time_ms:
        times[node.node_ip] = node.end_time_ms / 1e3
print(json.dumps(times))
"""


class ClusterRun:
    """Cluster of a head and workers, and a run whose folder they share. Variables of Ray: those given, no others."""

    def __init__(self, rig: Rig, workers: int, ray_variables: Mapping[str, str]) -> None:
        self.rig, self._variables = rig, dict(ray_variables)
        self.head = rig.machine("head")
        self.workers = [rig.machine(f"worker-{number}") for number in range(1, workers + 1)]
        self.diaries = rig.shared / "diaries"
        self.diaries.mkdir()
        self.files = RunFiles(rig.shared / "steerway" / "runs" / RUN)
        ray_start(self.head, "head", cpus=0, env=self.environment())
        for worker in self.workers:
            self.join(worker)
        self._driver: subprocess.Popen[str] | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment of Ray and of the run's driver."""
        return self._variables | {"STEERWAY_HOME": str(STEERWAY_HOME)}

    def join(self, worker: Machine) -> None:
        """Start Ray on a worker, as an administrator would after a failure too: nothing of before runs there."""
        worker.kill()
        ray_start(worker, "worker", self.head, cpus=1, env=self.environment())

    def start(self, sections: Mapping[str, object], script: Path = SCRIPT, launch: str = "ray_jobs.launch") -> None:
        """Make the run's folder and start its driver on the head. `launch`: the module of the driver."""
        raw = {
            "name": RUN,
            "seed": 1,
            "scaling": {"ranks": RANKS, "use_gpu": False, "placement": "spread"},
            "workload": {"kind": "script", "path": str(script), "args": [str(SHARED / "diaries")]},
        } | dict(sections)
        (self.rig.shared / "run.yaml").write_text(json.dumps(raw))
        paths = (str(SHARED / "run.yaml"), str(STEERWAY_HOME / "runs"), RUN)
        made = self.head.run("python", "-c", PREPARE, *paths, env=self.environment())
        if made.returncode:
            raise SteerwayError(f"the run's folder was not made:\n{made.stderr[-2000:]}")
        self.drive(launch)

    def drive(self, launch: str = "ray_jobs.launch", *more: str) -> None:
        """Start the run's driver on the head."""
        environment = self.environment() | worker_environment(START_TIMEOUT_S) | {"RAY_ADDRESS": "auto"}
        folder = str(STEERWAY_HOME / "runs" / RUN)
        self._driver = self.head.start("python", "-m", launch, folder, *more, env=environment, log=self.log_file)

    @property
    def log_file(self) -> Path:
        """Path of the driver's log."""
        return self.rig.folder / "driver.log"

    def log(self, size: int = 4000) -> str:
        """Return the end of the driver's log."""
        return self.log_file.read_text(errors="replace")[-size:] if self.log_file.exists() else ""

    def complaint(self) -> str | None:
        """Return why the run's driver has ended, or None."""
        if self._driver is not None and self._driver.poll() is not None:
            return f"the driver has ended with {self._driver.returncode}; its log ends:\n{self.log()}"
        return None

    def journal(self) -> list[Entry]:
        """Return the entries of the run's journal."""
        return list(writer.read(self.files.journal)) if self.files.journal.exists() else []

    def carriers(self) -> list[Machine]:
        """Return the machine of each rank of the newest generation, in the order of the ranks."""
        starts = [entry.record for entry in self.journal() if isinstance(entry.record, GenerationStarted)]
        if not starts:
            return []
        return [self.rig.machines[place.node] for place in sorted(starts[-1].ranks, key=lambda place: place.rank)]

    def declared_dead_s(self, address: str) -> float | None:
        """Return the Unix time at which Ray last declared a node at this address dead."""
        done = self.head.run(
            "python",
            "-c",
            DEAD_NODES,
            env=self.environment() | {"RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:8265"},
        )
        times = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        return float(times[address]) if address in times else None

    def wait(self, what: str, limit_s: float, ready: object) -> None:
        """Poll `ready` until it is true. Raises `SteerwayError` with the driver's log."""
        deadline = time.monotonic() + limit_s
        while not ready():  # type: ignore[operator]
            if complaint := self.complaint():
                raise SteerwayError(f"{what} did not happen: {complaint}")
            if time.monotonic() > deadline:
                raise SteerwayError(f"{what} did not happen within {limit_s:g} s; the driver's log ends:\n{self.log()}")
            time.sleep(0.1)
