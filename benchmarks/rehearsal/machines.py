"""Machines of the rehearsal: a head and two workers that share a folder, Ray started by hand, and a laptop without."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.network.machines import Machine, Rig
from benchmarks.network.ray_start import PORT, ray_start
from control_plane.api.head_variables import environment as head_variables
from control_plane.core.model.errors import SteerwayError

HOME = "/srv/shared/steerway"
LAPTOP_HOME = "/srv/home/.steerway"
RAY_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64}
PROXY = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "control_plane.gateway.proxy.middlewares"}
WORKERS = ("worker-1", "worker-2")
RAY_STARTS = 3
COMMAND_WITHIN_S = 240.0
POLL_S = 0.25

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "torch", "deepspeed", "transformers", "streamlit"):
            raise ModuleNotFoundError(f"No module named {name!r} on a laptop", name=name)
sys.meta_path.insert(0, Blocked())
"""
"""`sitecustomize` of the laptop: its environment is the rig's, without what only a cluster has."""


class StepFailed(SteerwayError):
    """A step of the rehearsal did not do what it promises."""

    slug = "rehearsal-failed"


@dataclass
class Place:
    """The rehearsal's machines. `url`: the gateway's, as the laptop reaches it."""

    rig: Rig
    head: Machine = field(init=False)
    laptop: Machine = field(init=False)
    url: str = ""

    def build(self) -> None:
        """Make the machines; the laptop has its own home, no shared folder, and neither Ray nor torch."""
        self.head = self.rig.machine("head")
        for name in WORKERS:
            self.rig.machine(name)
        self.laptop = self.rig.machine("laptop", shares=False)
        folder = self.laptop.home / "without-ray"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(BLOCKED)

    def start_ray(self) -> None:
        """Start Ray by hand, with its token and the variables that docs/deploy.md names."""
        self._start(self.head, "head", 0)
        for name in WORKERS:
            self.join(name)

    def join(self, name: str) -> None:
        """Start Ray on a worker, which joins the head's cluster."""
        self._start(self.rig.machines[name], "worker", 2)

    def _start(self, machine: Machine, role: Literal["head", "worker"], cpus: int) -> None:
        """Start Ray on a machine; as an administrator would, again if it timed out: Ray gives a raylet 30 s."""
        for left in reversed(range(RAY_STARTS)):
            try:
                ray_start(machine, role, None if role == "head" else self.head, cpus=cpus, env=self.ray_environment())
                return
            except SteerwayError:
                if not left:
                    raise
                machine.kill()

    def ray_environment(self) -> dict[str, str]:
        """Return the environment of `ray start`."""
        return RAY_TOKEN | PROXY | head_variables() | {"STEERWAY_HOME": HOME}

    def on_cluster(self, *words: str) -> str:
        """Run `steer` on the head, as its administrator; return what it printed. Raises `StepFailed`."""
        environ = RAY_TOKEN | {"STEERWAY_HOME": HOME, "STEERWAY_HOST": self.head.address}
        return printed(self.head, ("python", "-m", "control_plane.cli.main", *words), environ)

    def deploy(self) -> dict[str, Any]:
        """Deploy on the cluster; return what it says as JSON."""
        outcome: dict[str, Any] = json.loads(
            self.on_cluster("deploy", f"--address={self.head.address}:{PORT}", "--json").splitlines()[-1]
        )
        self.url = outcome["gateway"]
        return outcome

    def steer(self, *words: str, text: str | None = None, cwd: str | None = None) -> str:
        """Run `steer` on the laptop; return what it printed. Raises `StepFailed`."""
        environ = {"STEERWAY_HOME": LAPTOP_HOME, "PYTHONPATH": f"/srv/home/without-ray:{self._path()}"}
        command = ("python", "-m", "control_plane.cli.main", *words)
        if cwd is not None:
            command = ("sh", "-c", f'cd {cwd} && exec "$@"', "sh", *command)
        return printed(self.laptop, command, environ, text)

    def _path(self) -> str:
        return self.laptop.environment()["PYTHONPATH"]

    def status(self, run: str) -> dict[str, Any]:
        """Return the run's snapshot, as the laptop sees it."""
        return dict(json.loads(self.steer("status", run, "--json").splitlines()[-1]))

    def carriers(self) -> dict[str, str]:
        """Return the machine of each rank, by the rank's process title."""
        return {
            name: f"{len(self.rig.machines[name].processes('ray::RayTrainWorker'))} ranks"
            for name in WORKERS
            if self.rig.machines[name].processes("ray::RayTrainWorker")
        }


def printed(machine: Machine, command: tuple[str, ...], environ: dict[str, str], text: str | None = None) -> str:
    """Return the standard output of a command. Raises `StepFailed` with what it said on standard error."""
    try:
        done = machine.run(*command, env=environ, timeout_s=COMMAND_WITHIN_S, text=text)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"`{' '.join(command[3:6])}` on {machine.name} took over {COMMAND_WITHIN_S:g} s") from None
    if done.returncode:
        words = " ".join(command[-4:])
        raise StepFailed(
            f"`{words}` on {machine.name} ended with {done.returncode}: {(done.stderr or done.stdout)[-900:]}"
        )
    return done.stdout


def wait_until(what: str, ready: Callable[[], Any], within_s: float) -> Any:
    """Poll until `ready()` returns something true, and return that. Raises `StepFailed`."""
    deadline, last = time.monotonic() + within_s, ""
    while time.monotonic() < deadline:
        try:
            if answer := ready():
                return answer
        except StepFailed as error:
            last = error.reason
        time.sleep(POLL_S)
    raise StepFailed(f"{what}: not within {within_s:g} s{f' (last: {last[-300:]})' if last else ''}")


def send_code(laptop: Machine, source: Path) -> str:
    """Copy the script's folder to the laptop; return its path there."""
    subprocess.run(["cp", "-r", str(source), str(laptop.home / "code")], check=True)
    return "/srv/home/code"
