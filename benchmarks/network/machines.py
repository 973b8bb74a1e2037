"""Machines of the rig: namespaces with a network, process ids, mounts, a host name and a home of their own.

    with Rig() as rig:
        head, worker = rig.machine("head"), rig.machine("worker-1")
        laptop = rig.machine("laptop", shares=False)
        head.run("hostname")                        # waits for it
        worker.start("python", "-m", "http.server") # does not
        worker.link.cut()                           # or cut("in"), delay(200), loss(5), flap(...); heal()

Nothing of it has a name on the host: the namespaces end with their processes, and these end when the process that made
the rig does, in whatever way. So two rigs do not collide, and a crash leaves a folder in /tmp at most. `/srv/shared`
is one folder on all machines but those with `shares=False`; the host sees it as `rig.shared`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.network.links import Link, Switch, end, expect
from benchmarks.network.requirements import REPOSITORY, reason_against
from control_plane.core.model.errors import SteerwayError

NETWORK = "10.77.0"
SHARED, HOME = Path("/srv/shared"), Path("/srv/home")
INIT = Path(__file__).with_name("machine_init.py")
PRIVATE = (("/tmp", "4g"), ("/dev/shm", "2g"))
"""Folders of which each machine has its own, in memory. Ray's sessions lie in /tmp/ray."""

RUN_WITHIN_S = 120.0
ENTER = ("--net", "--mount", "--pid", "--uts", "--ipc")


class Machine:
    """One machine of the rig, with its address and its link."""

    def __init__(self, switch: Switch, name: str, number: int, folder: Path, shared: Path | None, hosts: str) -> None:
        self.name, self.address, self.folder = name, f"{NETWORK}.{number}", folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / "hosts").write_text(hosts)
        binds = [[str(self.home), str(HOME)]] + ([[str(shared), str(SHARED)]] if shared else [])
        spec = {"name": name, "hosts": str(folder / "hosts"), "binds": binds, "tmpfs": PRIVATE}
        unshare = ["unshare", *ENTER, "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(
            [*unshare, sys.executable, "-ISE", str(INIT), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        expect(self._unshare, "ready", f"machine {name}")
        self.pid = psutil.Process(self._unshare.pid).children()[0].pid
        self.link = Link(switch, number, self.pid, self.address)

    def environment(self) -> dict[str, str]:
        """Return the environment of a fresh login: nothing of the caller's."""
        programs = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        plain = {"HOME": str(HOME), "PATH": programs, "LANG": "C.UTF-8", "TERM": "dumb", "USER": "root"}
        return plain | {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        timeout_s: float = RUN_WITHIN_S,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with `text` as its input. Raises `subprocess.TimeoutExpired`; checks no status."""
        words, variables = self._inside(command), self.environment() | dict(env or {})
        return subprocess.run(
            words, env=variables, input=text, capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/"
        )

    def start(
        self, *command: str, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command; its output goes to `log`, by default `NAME/start.log` in the rig's folder.

        What is returned is `nsenter`, which ends with the command; to kill the command itself use `processes`.
        """
        with (log or self.folder / "start.log").open("a") as output:
            return subprocess.Popen(
                self._inside(command),
                env=self.environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd="/",
            )

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Return the machine's living processes but the first, or those with `name` in their command line."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        members: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace and process.pid != self.pid
                if inside and process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()):
                    members.append(process)
            except (OSError, psutil.Error):
                continue
        return members

    def kill(self, name: str = "") -> list[int]:
        """Kill the processes with `name` in their command line (all: a crash of everything on it); return the pids."""
        killed: list[int] = []
        for process in self.processes(name):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            killed.append(process.pid)
        return killed

    def close(self) -> None:
        """Power it off: all its processes end at once."""
        self.link.close()
        end(self._unshare)

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), *ENTER, "--wd=/", "--", *command]


class Rig:
    """Switch with machines. A context manager; `folder` holds logs, homes and the shared folder."""

    def __init__(self) -> None:
        if reason := reason_against():
            raise SteerwayError(reason)
        self.folder = Path(tempfile.mkdtemp(prefix="steerway-rig-"))
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        self.switch = Switch()
        self.machines: dict[str, Machine] = {}
        self._made = 0

    def machine(self, name: str, shares: bool = True) -> Machine:
        """Add a machine, or make a new one in place of a closed one of that name.

        Its `/etc/hosts` names every machine made before it, and itself as Debian does: `127.0.1.1 NAME`.
        """
        self._made += 1
        others = "".join(f"{machine.address} {machine.name}\n" for machine in self.machines.values())
        hosts = f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}"
        folder = self.folder / f"{name}-{self._made}"
        shared = self.shared if shares else None
        self.machines[name] = Machine(self.switch, name, self._made, folder, shared, hosts)
        return self.machines[name]

    def close(self) -> None:
        """Power off every machine and the switch, and remove the folder."""
        for machine in self.machines.values():
            machine.close()
        self.switch.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
