"""Trainings that a rollback has left: their engines and tensors do not stay in memory."""

from pathlib import Path

import pytest

from tests.ray_jobs.support.ranks import run_ranks

pytestmark = pytest.mark.jobs


@pytest.mark.parametrize(
    ("stage", "times"),
    [(3, 3), *(pytest.param(stage, 20, marks=pytest.mark.slow) for stage in (0, 1, 2, 3))],
)
def test_trainings_that_were_left_leave_no_engine_and_no_tensors(stage: int, times: int, tmp_path: Path) -> None:
    spec = {"root": str(tmp_path), "stage": stage, "times": times}
    (seen,) = run_ranks("tests.ray_jobs.steering.release_trial:left", 1, spec, tmp_path / "ranks")
    assert [one["engines"] for one in seen] == [0] * times
    # What torch and DeepSpeed keep once is there after the first one.
    assert seen[-1]["bytes"] <= seen[0]["bytes"]
