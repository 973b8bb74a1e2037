"""The shortest real run of the overhead benchmark, with a Ray and a control actor of its own."""

import json
import subprocess
import sys

import pytest

from benchmarks.step_cost.overhead import TARGETS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_quick_run_measures_both_parts_and_proves_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks", "overhead", "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    figures = answer["figures"]
    assert set(TARGETS) <= set(figures)
    assert (figures["blocks"], figures["pairs"]) == (5, 1)
    assert answer["verdict"] == "not proved"  # five blocks are too few, whatever they say
    assert all(
        isinstance(figures[f"{part}_{arm}{measured}_percent"], float)
        for part in ("blocks", "trainings")
        for arm in ("", "aa_")
        for measured in ("wall", "cpu")
    )
    assert figures["boundary_us_median"] > 0
    assert figures["threads_cpu_percent"] > 0
