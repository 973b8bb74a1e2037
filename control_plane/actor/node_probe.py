"""Probe of one node: a Ray actor that reports what it sees there, and is removed after it was asked.

It answers for Steerway's release, Python and Ray, the environment of Ray's own processes, GPUs, the clock and the
storage. Variables with a secret are left out where they are read.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from control_plane.api.cluster import Finding
from control_plane.api.versions import release
from control_plane.core.model.errors import Refused
from control_plane.core.model.intent_base import Message
from control_plane.storage.file_systems import assess, file_system_of
from control_plane.storage.probe import probe
from control_plane.storage.proof import StorageProof, check_proof, machine_name

TORCH_WITHIN_S = 60.0
COUNT_GPUS = "import torch; print(torch.__version__, torch.cuda.device_count())"


class NodeReport(Message):
    """Report of a probe about its node. `raylet`, `gcs`: `RAY_` variables of these processes; empty if not readable."""

    machine: str
    release: str
    python: str
    ray: str
    user: int
    raylet: dict[str, str] = {}
    gcs: dict[str, str] = {}
    torch: str | None = None
    gpus: int | None = None


class NodeProbe:
    """Actor on one node."""

    def report(self, with_gpus: bool) -> NodeReport:
        """Return what this node is. `with_gpus`: import torch in a process of its own, which takes seconds."""
        import ray

        torch, gpus = _torch_and_gpus() if with_gpus else (None, None)
        return NodeReport(
            machine=machine_name(),
            release=release("unknown"),
            python=f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
            ray=ray.__version__,
            user=os.geteuid(),
            raylet=_ray_variables(os.getppid()),
            gcs=_ray_variables(_gcs()),
            torch=torch,
            gpus=gpus,
        )

    def clock(self) -> float:
        """Return this node's Unix time."""
        return time.time()

    def storage(self, proof: dict[str, Any], folder: str, signing_key: str) -> list[Finding]:
        """Check that this node shares the folder and the key with the proof's writer, and what the file system can."""
        path = Path(folder)
        try:
            check_proof(StorageProof.model_validate(proof), path, Path(signing_key))
        except Refused as refusal:
            action = "mount the shared folder there, or set STEERWAY_HOME to one that every node has"
            return [Finding(level="failed", what="shared folder and key", why=refusal.reason, action=action)]
        level, why = assess(file_system_of(path), machines=1)  # that all share it was just proved
        kind = Finding(level=level, what="file system", why=why or str(file_system_of(path)))
        return [Finding(level="ok", what="shared folder and key"), kind, *probe(path)]


def _ray_variables(pid: int | None) -> dict[str, str]:
    """Return the `RAY_` variables of a process that hold no secret."""
    try:
        environ = psutil.Process(pid).environ() if pid else {}
    except psutil.Error:
        return {}
    return {
        name: value for name, value in environ.items() if name.startswith("RAY_") and not name.endswith("AUTH_TOKEN")
    }


def _gcs() -> int | None:
    """Return the pid of the GCS of this node's cluster, if it runs here: it shares the raylet's session folder."""
    try:
        session = _session(psutil.Process(os.getppid()).cmdline())
        for process in psutil.process_iter(["name", "cmdline"]):
            words = process.info["cmdline"] or []
            if process.info["name"] == "gcs_server" and session is not None and _session(words) == session:
                return int(process.pid)
    except psutil.Error:
        pass
    return None


def _session(words: list[str]) -> str | None:
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if name.replace("-", "_") == "session_name":
            return value
    return None


def _torch_and_gpus() -> tuple[str | None, int | None]:
    # In a process of its own: this one stays small, and no device is opened in it.
    try:
        done = subprocess.run(
            [sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True, timeout=TORCH_WITHIN_S, check=True
        )
        version, count = done.stdout.split()
        return version, int(count)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
