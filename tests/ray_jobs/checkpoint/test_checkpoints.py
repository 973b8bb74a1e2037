"""Checkpoints on real ranks: two gloo processes with DeepSpeed, ZeRO 0 to 3, against what stock DeepSpeed saves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control_plane.storage.checkpoint.store import MANIFEST, list_checkpoints, verify
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.checkpoint_key import KEY, STEPS
from tests.ray_jobs.support.ranks import run_ranks

pytestmark = pytest.mark.jobs
each_stage = pytest.mark.parametrize("stage", range(4))

Seen = list[dict[str, Any]]


@dataclass(frozen=True)
class Trials:
    """Where the trials wrote, and what each rank saw."""

    root: Path
    ranks: Seen


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Every trial in the same two processes."""
    root = tmp_path_factory.mktemp("checkpoints")
    spec = {"root": str(root)}
    return Trials(
        root, run_ranks("tests.ray_jobs.trials.checkpoint_trials:all_that_ends_well", 2, spec, root / "ranks")
    )


@pytest.fixture(scope="module")
def stages(trials: Trials) -> dict[int, Seen]:
    """What each rank saw, by ZeRO stage."""
    return {stage: [rank[str(stage)] for rank in trials.ranks] for stage in range(4)}


@each_stage
def test_a_save_holds_what_stock_deepspeed_saves_although_the_live_state_is_overwritten_meanwhile(
    stages: dict[int, Seen], stage: int
) -> None:
    for rank in stages[stage]:
        assert rank["reason"] is None
        assert rank["differences"] == []
        assert {f"state/{name}" for name in rank["stock_files"]} < set(rank["files"])


@each_stage
def test_a_save_is_not_larger_than_stock(stages: dict[int, Seen], stage: int) -> None:
    assert all(ratio < 1.05 for rank in stages[stage] for ratio in rank["sizes"])


@each_stage
def test_stock_deepspeed_loads_a_save_and_the_digest_proves_it(stages: dict[int, Seen], stage: int) -> None:
    for rank in stages[stage]:
        state, random = rank["told"]
        assert rank["restored"] == state == rank["digests"][0]
        assert random == rank["random"]
        assert rank["spoilt"] != state or (stage == 0 and rank is stages[stage][1])


@each_stage
def test_the_digest_is_the_same_twice_and_another_after_a_step(stages: dict[int, Seen], stage: int) -> None:
    first, second = stages[stage][0]["digests"]
    assert first == second
    assert stages[stage][0]["a_step_later"] != first


@each_stage
def test_only_rank_0_knows_of_the_commit_and_no_report_stays_behind(stages: dict[int, Seen], stage: int) -> None:
    assert [rank["committed"] for rank in stages[stage]] == [True, False]
    beside = [name for name in stages[stage][0]["files"] if "/" not in name]
    assert beside == [MANIFEST]


@each_stage
def test_deepspeed_gets_its_own_checkpoint_engine_back_and_trains_on(stages: dict[int, Seen], stage: int) -> None:
    assert [(rank["same_engine"], rank["step"]) for rank in stages[stage]] == [(True, STEPS)] * 2


def test_a_trainer_without_deepspeed_is_saved_by_rank_0(trials: Trials) -> None:
    leader, follower = (rank["plain"] for rank in trials.ranks)
    manifest = verify(RunFiles(trials.root / "plain").checkpoints / leader["saved"], KEY)
    assert sorted(shard.path for shard in manifest.shards) == sorted(leader["files"] + follower["files"])
    assert leader["files"] == ["state/model.pt", "state/rank-0-progress.pt", "state/trainer_state.json"]
    assert follower["files"] == ["state/rank-1-progress.pt"]


def test_a_failure_on_one_rank_gives_a_reason_and_no_checkpoint_and_training_goes_on(trials: Trials) -> None:
    leader, follower = (rank["failures"] for rank in trials.ranks)
    assert leader["reason"].startswith("RuntimeError: rank 1: OSError")
    assert "No space left" in follower["reason"]
    assert leader["left"] == []
    assert leader["not_begun"] == follower["not_begun"] == "rank 1: MemoryError: no more host memory"
    assert leader["saved"] == follower["saved"]
    assert leader["listed"] == [leader["saved"]]
    assert [(rank["step"], rank["busy"]) for rank in (leader, follower)] == [(STEPS, False)] * 2


def test_a_rank_killed_while_it_writes_leaves_nothing_selectable(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 0"):
        run_ranks(
            "tests.ray_jobs.trials.checkpoint_trials:killed", 2, {"root": str(tmp_path / "run")}, tmp_path / "ranks"
        )
    committed, reason = json.loads((tmp_path / "run" / "heard.json").read_text())
    assert committed is None
    assert "rank 1: did not report within" in reason
    assert list_checkpoints(RunFiles(tmp_path / "run").checkpoints, KEY) == []
