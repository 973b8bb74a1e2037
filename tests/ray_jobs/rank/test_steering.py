"""Live learning rates on real ranks: two gloo processes with DeepSpeed, ZeRO 1, 2 and 3, both kinds of scheduler."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from control_plane.core.model.records import CheckpointCommitted, CommandSettled, Entry, GenerationStarted
from control_plane.storage.checkpoint.store import SigningKey, verify
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.ray_jobs.support.ranks import run_ranks

STEPS = 14
ARMS = {
    "zero1-hf-scheduler": (1, "hf", "deepspeed"),
    "zero2-hf-scheduler-hf-optimizer": (2, "hf", "hf"),
    "zero2-deepspeed-scheduler": (2, "deepspeed", "deepspeed"),
    "zero3-hf-scheduler": (3, "hf", "deepspeed"),
    "zero3-deepspeed-scheduler": (3, "deepspeed", "deepspeed"),
}
SET_AT, HOLD_AT, SAVE_AT = 5, 8, 10
NEW_RATE = 1e-3


def command(step: int, **intent: Any) -> dict[str, Any]:
    return {"uuid": str(uuid4()), "author": "test", "intent": intent, "not_before_step": step}


def commands() -> list[dict[str, Any]]:
    return [
        command(SET_AT, kind="set_learning_rate", value=NEW_RATE),
        command(HOLD_AT, kind="set_learning_rate", factor=0.5, schedule="hold"),
        command(HOLD_AT, kind="set_learning_rate", value=1e-4, group=7),
        command(SAVE_AT, kind="save_checkpoint", label="kept", note="before the change"),
        command(SAVE_AT, kind="evaluate"),
    ]


class Run:
    """One training's folder, with what each rank's witness saw."""

    def __init__(self, root: Path, seen: list[dict[str, Any]]) -> None:
        self.files, self.seen = RunFiles(root), seen
        self.entries: list[Entry] = read(self.files.journal)

    def of(self, kind: type) -> list[Any]:
        return [entry.record for entry in self.entries if isinstance(entry.record, kind)]

    def used(self, step: int) -> list[list[float]]:
        """The learning rates that each rank's optimizer held when it took a step."""
        return [rank["used"][str(step)] for rank in self.seen]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every arm, in the same two processes: importing the stack costs far more than these trainings."""
    folder = tmp_path_factory.mktemp("steering")
    trainings = [
        {
            "root": str(folder / name),
            "stage": stage,
            "scheduler": scheduler,
            "optimizer": optimizer,
            "steps": STEPS,
            "commands": commands(),
        }
        for name, (stage, scheduler, optimizer) in ARMS.items()
    ]
    seen = run_ranks("tests.ray_jobs.trials.trials:train_each", 2, {"trainings": trainings}, folder / "ranks")
    return {name: Run(folder / name, [rank[index] for rank in seen]) for index, name in enumerate(ARMS)}


pytestmark = pytest.mark.jobs
each_arm = pytest.mark.parametrize("arm", ARMS)


@each_arm
def test_deepspeed_is_really_in_force(runs: dict[str, Run], arm: str) -> None:
    (started,) = runs[arm].of(GenerationStarted)
    assert started.facts["zero_stage"] == ARMS[arm][0]
    assert started.facts["global_batch_samples"] > 0
    assert started.world_size == 2


@each_arm
def test_setting_the_rate_is_applied_at_one_step_and_read_back_from_each_rank(runs: dict[str, Run], arm: str) -> None:
    settled: CommandSettled = runs[arm].of(CommandSettled)[0]
    groups = len(settled.after["lr"]) if settled.after else 0
    assert (settled.status, settled.step, settled.world_size) == ("applied", SET_AT, 2)
    assert [reading["lr"] for reading in settled.ranks] == [[NEW_RATE] * groups] * 2
    assert runs[arm].used(SET_AT)[0][0] != NEW_RATE
    assert runs[arm].used(SET_AT + 1) == [[NEW_RATE] * groups] * 2


@each_arm
def test_keeping_the_shape_scales_what_is_left_of_the_schedule(runs: dict[str, Run], arm: str) -> None:
    before, after = runs[arm].of(CommandSettled)[0].before["lr"][0], NEW_RATE
    first, second = (runs[arm].used(step)[0][0] for step in (SET_AT + 1, SET_AT + 2))
    assert 0 < second < first
    drop = first - second
    assert drop == pytest.approx(runs[arm].used(SET_AT)[0][0] * after / before - first, rel=1e-6)


@each_arm
def test_holding_keeps_the_value_to_the_end(runs: dict[str, Run], arm: str) -> None:
    held = runs[arm].of(CommandSettled)[1].after["lr"]
    assert all(runs[arm].used(step) == [held, held] for step in range(HOLD_AT + 1, STEPS + 1))


@each_arm
def test_an_unknown_group_is_rejected_on_all_ranks_with_a_reason(runs: dict[str, Run], arm: str) -> None:
    rejected = next(settled for settled in runs[arm].of(CommandSettled) if settled.status != "applied")
    assert rejected.status == "rejected"
    assert "no parameter group 7" in rejected.reason


@each_arm
def test_ranks_never_held_different_rates(runs: dict[str, Run], arm: str) -> None:
    assert all(runs[arm].used(step)[0] == runs[arm].used(step)[1] for step in range(1, STEPS + 1))


@each_arm
def test_the_logged_rate_is_the_one_the_step_used(runs: dict[str, Run], arm: str) -> None:
    points = MetricsStore(runs[arm].files.metrics).read(0, 10_000, ["lr"]).points
    assert len(points) == STEPS
    assert {point.step: point.value for point in points} == {
        step: runs[arm].used(step)[0][0] for step in range(1, STEPS + 1)
    }


@each_arm
def test_a_saved_checkpoint_has_every_ranks_shard_and_verifies(runs: dict[str, Run], arm: str) -> None:
    (committed,) = runs[arm].of(CheckpointCommitted)
    root = runs[arm].files.root
    key = SigningKey.of_installation(root.parent.parent / "checkpoint-key")
    manifest = verify(root / committed.path, key)
    assert (manifest.step, manifest.world_size, manifest.label) == (SAVE_AT, 2, "kept")
    assert {shard.rank for shard in manifest.shards} == {0, 1}
    assert not list((runs[arm].files.root / committed.path).rglob("latest"))


@each_arm
def test_a_save_is_settled_when_the_checkpoint_is_committed(runs: dict[str, Run], arm: str) -> None:
    (settled,) = (each for each in runs[arm].of(CommandSettled) if "checkpoint" in (each.after or {}))
    (committed,) = runs[arm].of(CheckpointCommitted)
    assert (settled.status, settled.step) == ("applied", SAVE_AT)
    assert settled.after == {"checkpoint": committed.checkpoint, "size_bytes": committed.size_bytes}
    assert (committed.label, committed.note) == ("kept", "before the change")


@each_arm
def test_evaluating_now_reads_one_loss_on_all_ranks(runs: dict[str, Run], arm: str) -> None:
    (evaluated,) = (each for each in runs[arm].of(CommandSettled) if "eval_loss" in (each.after or {}))
    first, second = (reading["eval_loss"] for reading in evaluated.ranks)
    assert evaluated.status == "applied"
    assert first == second > 0
