"""The GPU check itself, where there is a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_gpu_check_passes_on_this_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU here")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads(run.stdout.strip().splitlines()[-1])
    assert summary["gpu"]
    assert summary["failed"] == []
    assert summary["passed"] > 0


def test_make_gpu_check_runs_it_with_the_python_that_is_there_and_builds_no_environment() -> None:
    said = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "-n",
            "gpu-check",
            "PYTHON=some-python",
            "GPU_CHECK=--rehearse --only boundary",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip().endswith("some-python -m benchmarks.gpu --rehearse --only boundary")
    assert "venv" not in said
    assert "pip" not in said
