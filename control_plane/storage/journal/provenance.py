"""Provenance: versions and hardware of this machine and of a run, and their differences. Imports no framework."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import Entry, GenerationStarted

PACKAGES = ("steerway", "torch", "deepspeed", "transformers", "accelerate", "ray")
"""Packages whose version may affect what a training computes or how a journal is read."""

CPU_INFO = Path("/proc/cpuinfo")
GPU_INFO = Path("/proc/driver/nvidia/gpus")
"""Linux only; elsewhere CPU and GPUs are unknown, which does not count as a difference."""


class Machine(Message):
    """Versions and hardware of a machine; unknown values are empty or None."""

    python: str
    packages: dict[str, str | None]
    system: str
    architecture: str
    cpu: str = ""
    gpus: tuple[str, ...] = ()


class Trainers(Message):
    """Ranks of a run's last start: their number, kinds of devices and number of nodes."""

    ranks: int = 0
    devices: dict[str, int] = {}
    nodes: int = 0


def this_machine() -> Machine:
    """Return versions and hardware of this machine."""
    return Machine(
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        system=platform.system(),
        architecture=platform.machine(),
        cpu=_read_value(CPU_INFO, "model name"),
        gpus=tuple(_read_value(gpu / "information", "Model") for gpu in sorted(GPU_INFO.glob("*"))),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read_value(path: Path, key: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip()[:200] for line in lines if line.startswith(key)), "")


def trainers_of(entries: Sequence[Entry]) -> Trainers:
    """Return the ranks of the last start of a run."""
    starts = [entry.record for entry in entries if isinstance(entry.record, GenerationStarted)]
    if not starts:
        return Trainers()
    places = starts[-1].ranks
    kinds = Counter(place.device.partition(":")[0] for place in places)
    return Trainers(ranks=len(places), devices=dict(sorted(kinds.items())), nodes=len({place.node for place in places}))


def differences(there: Machine, here: Machine, trainers: Trainers) -> list[str]:
    """Return the differences between this machine and the one of an export, as sentences."""
    lines = [] if there.python == here.python else [f"Python was {there.python} there and is {here.python} here"]
    for package in dict.fromkeys((*there.packages, *here.packages)):
        was, is_ = there.packages.get(package), here.packages.get(package)
        if was != is_:
            lines.append(f"{package} was {was or 'not installed'} there and is {is_ or 'not installed'} here")
    for name in ("system", "architecture", "cpu"):
        was, is_ = getattr(there, name), getattr(here, name)
        if was and is_ and was != is_:
            spoken = "the CPU" if name == "cpu" else f"the {name}"
            lines.append(f"{spoken} was {was} there and is {is_} here")
    if there.gpus != here.gpus:
        lines.append(f"the machine had {_counted(there.gpus)} there and has {_counted(here.gpus)} here")
    if trainers.devices.get("cuda", 0) and not here.gpus:
        lines.append(
            f"{trainers.devices['cuda']} of {trainers.ranks} ranks trained on a GPU, but this machine has none"
        )
    return lines


def _counted(gpus: Sequence[str]) -> str:
    counts = Counter(gpu or "GPU" for gpu in gpus)
    return " and ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or "no NVIDIA GPU"
