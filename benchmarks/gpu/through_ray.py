"""Last stage of the GPU check, if Ray is installed: a whole run by `steer run`."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "configs" / "gpt2-local.yaml"
STEPS = 40
BOX_S = 300.0


def run_through_ray(folder: Path, ranks: int, rehearse: bool, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the shipped GPT-2 config for some steps on a cluster of its own. Emits and returns the stage's line."""
    line: dict[str, Any] = {"stage": "ray", "ranks": ranks, "ok": None}
    if importlib.util.find_spec("ray") is None:
        line |= {"reason": "not run: Ray is not installed"}
    else:
        line |= _run(folder, ranks, rehearse)
    emit(line)
    return line


def _run(folder: Path, ranks: int, rehearse: bool) -> dict[str, Any]:
    folder.mkdir(parents=True)
    settings = yaml.safe_load(CONFIG.read_text())
    settings["scaling"] = {"ranks": ranks, "cpus_per_rank": 1, "use_gpu": not rehearse}
    settings["training"] |= {"max_steps": STEPS, "eval_strategy": "no"}
    settings["deepspeed"] = str(CONFIG.parent / settings["deepspeed"])
    config = folder / "gpu-check.yaml"
    config.write_text(yaml.safe_dump(settings))
    began_s = time.monotonic()
    command = [sys.executable, "-m", "control_plane.cli.main", "run", str(config), "--unattended"]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"STEERWAY_HOME": str(folder / "home")},
            capture_output=True,
            text=True,
            timeout=BOX_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "reason": f"ended: its time box of {BOX_S:g} s was over"}
    seconds = round(time.monotonic() - began_s, 1)
    if done.returncode == 0:
        return {"ok": True, "seconds": seconds, "steps": STEPS}
    return {"ok": False, "seconds": seconds, "reason": (done.stderr or done.stdout).strip()[-600:]}
