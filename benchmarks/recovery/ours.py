"""Steerway's arm of the recovery benchmark: a cluster of three nodes as started by `steer up`, and one run on it."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS
from benchmarks.recovery.diary import latest, read_processes
from benchmarks.recovery.faults import kill_all
from cluster import local, nodes
from cluster.parts import free_port
from cluster.record import ClusterRecord
from control_plane import config_text
from control_plane.api.messages import RecoveryView
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.records import Entry
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit

NODES = 3
SCRIPT = Path(__file__).parents[1] / "scripts" / "steered_recovery.py"
SPARES_WAIT_S = 90.0
"""Warm spares import for half a minute on two busy cores. Without them after this time, the next fault is injected."""

JOIN_TRIES = 3
"""On a busy machine a new Ray node may fail after half a minute, which is not what is measured."""

QUIET_FOR_S = 2.0
QUIET_CPU_S = 0.2
"""A spare that uses less than this within `QUIET_FOR_S` has imported everything."""

VIEW_WAIT_S = 20.0


class Ours:
    """Arm with one run on a cluster of its own."""

    name = "Steerway"

    def __init__(self, where: Settings, client: SteerwayClient, run: str, say: Say) -> None:
        self.folder = where.home / "diaries"
        self._where, self._client, self._say = where, client, say
        self.run = run

    def complaint(self) -> str | None:
        """Return the reason why the run has ended, with the end of its log, or None."""
        with contextlib.suppress(Unavailable):  # the control server may be restarting
            snapshot = self._client.snapshot(self.run)
            return f"run {self.run} is over: {snapshot.reason}\n{self.log()}" if snapshot.closed else None
        return None

    def log(self) -> str:
        """Return the end of the driver's log."""
        return self._client.logs(self.run, lines=25)

    def journal(self) -> list[Entry]:
        """Return all entries of the journal."""
        entries: list[Entry] = []
        while page := self._client.journal(self.run, after=len(entries)):
            entries += page
        return entries

    def ranks_by_node(self) -> dict[str, list[int]]:
        """Return the pids of the ranks, by the name of their node."""
        pids = {process.pid for process in latest(read_processes(self.folder)).values()}
        record, by_node = self._record(), dict[str, list[int]]()
        for name in nodes.recorded_nodes(record):
            here = sorted(pids & {process.pid for process in nodes.node_members(record, name)})
            by_node |= {name: here} if here else {}
        return by_node

    def kill_node(self, name: str) -> float:
        """Kill a node as `steer chaos kill-node` does, and return the Unix time."""
        if name == nodes.HEAD:
            raise SteerwayError("a rank runs on the head node, which this benchmark cannot kill")
        record = self._record()
        return kill_all(lambda: nodes.node_members(record, name))

    def phases(self, killed_s: float) -> tuple[float, float | None, float | None]:
        """Return the Unix times of detection, of the new ranks' start and of their restored state, by the journal."""
        view = self._recovery(killed_s)
        self._say(f"recovery: Steerway: {', '.join(sorted({death.reason for death in view.deaths}))}; {view.phases_s}")
        detected_s = _unix(view.lost_at)
        begun_s = detected_s + view.phases_s["re-form"]
        return detected_s, begun_s, begun_s + view.phases_s["load"]

    def _recovery(self, killed_s: float) -> RecoveryView:
        deadline = time.monotonic() + VIEW_WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                views = [view for view in self._client.snapshot(self.run).recoveries if _unix(view.lost_at) >= killed_s]
                if views and views[-1].over:
                    return views[0].model_copy(update={"phases_s": views[-1].phases_s})
            time.sleep(0.2)
        raise SteerwayError(f"run {self.run} made new steps, but its snapshot has no recovery")

    def mend(self, node_lost: bool) -> bool:
        """Replace a lost node, and wait for warm spares; return whether every other node has them."""
        if node_lost:
            self._add_node()
        deadline = time.monotonic() + SPARES_WAIT_S
        while not (warm := self._warm()) and time.monotonic() < deadline:
            time.sleep(1.0)
        self._say(f"recovery: Steerway: {'spares are warm' if warm else 'a node has NO warm spares'}")
        return warm

    def _add_node(self) -> None:
        for left in reversed(range(JOIN_TRIES)):
            try:
                local.add_node(self._where)
                return
            except SteerwayError as error:
                if not left:
                    raise
                self._say(f"recovery: Steerway: a node did not join, trying once more: {error.reason.splitlines()[0]}")

    def _warm(self) -> bool:
        carrying, record = self.ranks_by_node(), self._record()
        free = [
            name
            for name, mark in nodes.recorded_nodes(record).items()
            if name not in (nodes.HEAD, *carrying) and mark.process() is not None
        ]
        spares = {name: [one for one in nodes.node_members(record, name) if _is_spare(one)] for name in free}
        if not free or any(len(of_node) < RANKS for of_node in spares.values()):
            return False
        used_s = {one: _cpu_s(one) for of_node in spares.values() for one in of_node}
        time.sleep(QUIET_FOR_S)
        return all(_cpu_s(one) - before_s < QUIET_CPU_S for one, before_s in used_s.items())

    def _record(self) -> ClusterRecord:
        return local.require_up(self._where)


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _is_spare(process: psutil.Process) -> bool:
    """Return whether a process is an idle worker that has loaded torch, which only the hook of warm spares does."""
    try:
        idle = " ".join(process.cmdline()).startswith("ray::IDLE")
        return idle and any("libtorch_cpu" in region.path for region in process.memory_maps())
    except psutil.Error:
        return False


def _cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


@contextmanager
def steered(say: Say, name: str, save_steps: int) -> Iterator[Ours]:
    """Start a cluster and a run; end both, and remove the home, afterwards."""
    home = Path(tempfile.mkdtemp(prefix="steerway-bench-"))
    ports: dict[str, int] = {}
    for port in ("gateway_port", "console_port", "ray_port", "dashboard_port"):
        ports[port] = free_port("127.0.0.1", set(ports.values()))
    where = Settings.model_validate({"home": home} | ports)
    try:
        local.up(where, lambda line: say(f"cluster: {line}"), NODES)
        with SteerwayClient.from_settings(where) as client:
            yield Ours(where, client, _submit(where, name, save_steps), say)
    finally:
        local.down(where)
        shutil.rmtree(home, ignore_errors=True)


def _submit(where: Settings, name: str, save_steps: int) -> str:
    folder = where.home / "diaries"
    folder.mkdir()
    raw = {
        "name": name,
        "seed": 1,
        "scaling": {"ranks": RANKS, "use_gpu": False},
        "checkpoint": {"every_steps": save_steps},
        "workload": {"kind": "script", "path": str(SCRIPT), "args": [str(folder)]},
    }
    path = where.home / f"{name}.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, name)
    submit(files, where)
    return files.run
