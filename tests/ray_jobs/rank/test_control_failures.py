"""Ranks that cannot, ranks that fail, ranks that do not share the data: never half of them, never in silence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.core.model.errors import Invalid
from control_plane.core.model.records import CommandSettled
from control_plane.storage.journal.writer import read
from ray_jobs.process import cpu_setup
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.ranks import run_ranks

pytestmark = pytest.mark.jobs


def test_a_value_that_one_rank_cannot_hold_is_undone_on_all(tmp_path: Path) -> None:
    training: dict[str, Any] = {
        "root": str(tmp_path / "run"),
        "stage": 2,
        "scheduler": "hf",
        "optimizer": "deepspeed",
        "steps": 8,
        "commands": [
            command(3, kind="set_learning_rate", value=1e-3),
            command(5, kind="set_learning_rate", value=2e-3),
        ],
        "broken_rank": 1,
        "broken_value": 1e-3,
    }
    seen = run_ranks("tests.ray_jobs.trials.trials:train_with_a_broken_rank", 2, training, tmp_path / "ranks")
    failed, applied = [e.record for e in read(tmp_path / "run" / "journal") if isinstance(e.record, CommandSettled)]
    assert failed.status == "failed"
    assert "rank 1" in failed.reason
    assert "undone on all ranks" in failed.reason
    assert applied.status == "applied"
    assert seen[0]["used"] == seen[1]["used"]
    assert seen[0]["used"]["4"][0] != 1e-3
    assert seen[0]["used"]["6"][0] == 2e-3


def test_ranks_that_would_all_train_on_the_same_samples_are_refused(tmp_path: Path) -> None:
    seen = run_ranks(
        "tests.ray_jobs.trials.trials:train_unseen_by_accelerate", 2, {"root": str(tmp_path / "run")}, tmp_path / "r"
    )
    assert all("each rank would train on the same samples" in complaint for complaint in seen)


def test_ranks_without_a_gpu_and_without_deepspeed_train_one_model(tmp_path: Path) -> None:
    """No `use_cpu` in the script: their losses and gradients are averaged nevertheless."""
    spec = {"root": str(tmp_path / "run"), "stage": None, "scheduler": "hf", "optimizer": "hf", "use_cpu": False}
    seen = run_ranks("tests.ray_jobs.trials.trials:train", 2, spec | {"steps": 4, "commands": []}, tmp_path / "r")
    assert seen[0]["losses"] == seen[1]["losses"]
    assert len(seen[0]["losses"]) == 4


@pytest.mark.parametrize(
    ("world_size", "mode", "said"),
    [(1, "not_parallel", "train on the same samples"), (2, "not_parallel", "each rank would train a model of its own")],
)
def test_ranks_that_accelerate_does_not_bring_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, world_size: int, mode: str, said: str
) -> None:
    monkeypatch.setattr(cpu_setup.dist, "get_world_size", lambda: 2)
    args = SimpleNamespace(world_size=world_size, parallel_mode=SimpleNamespace(value=mode))
    with pytest.raises(Invalid, match=said):
        cpu_setup.check_data_parallel(args)
