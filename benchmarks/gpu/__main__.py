"""Command line of the GPU check: `make gpu-check`, `python -m benchmarks.gpu --rehearse`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import requirements
from benchmarks.gpu.catalogue import STAGE_BOXES
from benchmarks.gpu.check import GpuCheck

BUDGET_S = 330.0
REHEARSAL_BUDGET_S = 900.0
REHEARSAL_RANKS = 2
GPU_PROBE = (
    "import json, torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(json.dumps([torch.cuda.get_device_name(i) for i in range(n)]))"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the check and return the exit code: 0 if nothing failed or there is no GPU, 1 otherwise, 2 for misuse."""
    given = _parser().parse_args(arguments)
    if given.bundle is not None:
        return _lay_down(given.bundle)
    names = given.only.split(",") if given.only else list(STAGE_BOXES)
    if unknown := [name for name in names if name not in STAGE_BOXES]:
        print(f"there is no stage {unknown[0]!r}; the stages are: {', '.join(STAGE_BOXES)}", file=sys.stderr)
        return 2
    for reason in (reasons := requirements.reasons_not_to_run()):
        _emit({"missing": reason})
    if reasons:
        _emit({"gpu": None})
        return 1
    for warning in requirements.warnings():
        _emit({"warning": warning})
    gpus = [] if given.rehearse else _gpus()
    if not gpus and not given.rehearse:
        _emit({"reason": "PyTorch sees no GPU: torch.cuda.is_available() is False. Try --rehearse on CPUs"})
        _emit({"gpu": None})
        return 0
    return _check(given, names, gpus)


def _lay_down(folder: Path) -> int:
    from benchmarks.gpu.bundle import import_run
    from control_plane.core.model.errors import SteerwayError

    try:
        print(import_run(folder))
    except SteerwayError as error:
        print(error.reason, file=sys.stderr)
        return 1
    return 0


def _check(given: argparse.Namespace, names: list[str], gpus: list[str]) -> int:
    budget_s = given.budget or (REHEARSAL_BUDGET_S if given.rehearse else BUDGET_S)
    began_s = time.monotonic()
    world_size = len(gpus) or REHEARSAL_RANKS
    label: dict[str, Any] = {"rehearsal": True} if given.rehearse else {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        root, deadline_s = Path(folder), began_s + budget_s
        lines = GpuCheck(root / "ranks", world_size, given.rehearse, deadline_s, _emit, label).run(names)
        if len(gpus) == 1 and "boundary" in names:
            two = {"backend": "gloo", "device": "cpu", "ranks": 2}
            lines += GpuCheck(root / "two", 2, True, deadline_s, _emit, two).run(["boundary"])
        if given.ray:
            from benchmarks.gpu.through_ray import run_through_ray

            lines.append(run_through_ray(root / "ray", world_size, given.rehearse, _emit))
    verdicts = [line["ok"] for line in lines]
    _emit(
        {
            "gpu": gpus[0] if gpus else None,
            "gpus": len(gpus),
            **label,
            "passed": verdicts.count(True),
            "failed": [line["stage"] for line in lines if line["ok"] is False],
            "not_run": [line["stage"] for line in lines if line["ok"] is None],
            "seconds": round(time.monotonic() - began_s, 1),
            "versions": requirements.versions(),
        }
    )
    return 1 if False in verdicts else 0


def _gpus() -> list[str]:
    """Return the names of the GPUs that PyTorch sees, from a subprocess, so that this one allocates no GPU memory."""
    asked = subprocess.run([sys.executable, "-c", GPU_PROBE], capture_output=True, text=True, check=False)
    return list(json.loads(asked.stdout.strip().splitlines()[-1])) if asked.returncode == 0 else []


def _emit(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-check", description="What was shown on CPU ranks, on this GPU.")
    parser.add_argument("--budget", type=float, help="seconds in all (330; 900 for a rehearsal)")
    parser.add_argument(
        "--rehearse", action="store_true", help="test the check itself, on two CPU ranks with tiny sizes"
    )
    parser.add_argument("--only", metavar="STAGE,..", help=f"some stages: {', '.join(STAGE_BOXES)}")
    parser.add_argument("--ray", action="store_true", help="a run through `steer run` on a Ray cluster as well")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="write what a machine without network needs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
