"""Checkpoints of older releases are restored: the state's digest, taken then, is that of the live state now.

`releases/` holds runs as those releases wrote them, signed with the key of `checkpoint_key`.
"""

import shutil
from pathlib import Path

import pytest

from tests.ray_jobs.support.checkpoint_key import KEY_TEXT
from tests.ray_jobs.support.ranks import run_ranks

RELEASES = Path(__file__).parent / "releases"
SAVED_AT, STEPS = 3, 8


@pytest.mark.jobs
def test_a_loop_saved_when_it_stood_in_for_a_trainer_is_restored(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-key").touch(mode=0o600)
    (tmp_path / "checkpoint-key").write_text(KEY_TEXT)
    root = tmp_path / "runs" / "compat"
    shutil.copytree(RELEASES / "d4cf907-loop", root)
    seen = run_ranks(
        "tests.ray_jobs.trials.loop_trials:continued", 2, {"root": str(root), "steps": STEPS}, tmp_path / "ranks"
    )
    for rank in seen:
        assert (rank["began_at"], rank["step"], rank["weight"], rank["seed"]) == (SAVED_AT, STEPS, 2.0, 3)
        # A command that the journal holds after the checkpoint is repeated at its step.
        assert rank["used"]["6"][0] == pytest.approx(0.9 * rank["used"]["5"][0] * (1 - 5 / 64) / (1 - 4 / 64))
