"""The shortest real benchmark, with real ranks."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.ranks import run_ranks
from benchmarks.step_cost.boundary import TARGETS
from control_plane.core.model.errors import SteerwayError

pytestmark = pytest.mark.jobs


@pytest.mark.slow
def test_boundary_quick_run_measures_every_figure() -> None:
    command = [sys.executable, "-m", "benchmarks", "boundary", "--json", "--quick", "--n", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode in (0, 1), done.stderr  # a smoke run's figures mean nothing; that they are there does
    answer = json.loads(done.stdout)
    assert set(TARGETS) <= set(answer["figures"])
    assert [name for name, value in answer["figures"].items() if value is None or value < 0] == []
    assert answer["figures"]["prefetched_us_p50"] > 0
    assert answer["met"] is (done.returncode == 0)


def test_ranks_that_fail_show_their_log_and_leave_no_process(tmp_path: Path) -> None:
    with pytest.raises(SteerwayError, match="no attribute 'missing'"):
        run_ranks("benchmarks.harness.quantiles:missing", 2, {}, tmp_path, timeout_s=120)
    left = [
        child for child in psutil.Process().children(recursive=True) if "benchmarks.harness.ranks" in child.cmdline()
    ]
    assert left == []
