"""Rolled back in the living processes, a training goes on bit for bit as in fresh ones from the same checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.records import BranchResumed, BranchStarted, CommandSettled, GenerationStarted
from control_plane.core.model.state import fold
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.ray_jobs.rank.test_recovery import assert_equal_ends, command, training
from tests.ray_jobs.support.crashes import run_crashes

pytestmark = pytest.mark.jobs

HALVED = {"kind": "set_learning_rate", "factor": 0.5}
HELD = {"kind": "set_learning_rate", "value": 0.004, "schedule": "hold"}
WEIGHT_DECAY = {"kind": "set_knobs", "changes": [{"knob": "weight_decay", "value": 0.3}]}

ROLLBACKS: list[list[Any]] = [
    [8, {"kind": "rollback", "checkpoint": "step-00000003-g1", "first": [HELD, WEIGHT_DECAY]}],
    [11, {"kind": "rollback", "checkpoint": "step-00000006-g2", "branch": "second-try"}],
    [10, {"kind": "rollback", "branch": "main"}],
    [13, {"kind": "rollback", "checkpoint": "step-00000006-g1", "first": [HALVED]}],
]
"""Asked for in which step, and to where; the step at which it is taken is chance.

The third goes on with the first branch, from its newest checkpoint."""


def rolled_back(root: Path, stage: int | None, **spec: Any) -> dict[str, Any]:
    given = {"steps": 16, "patient": True, "asked": ROLLBACKS, "commands": [command(1, 2, **HALVED)]} | spec
    kills = [[-1, 0, "none"]] * len(given["asked"]) if given.get("fresh") else given.pop("kills", [])
    return training(root, stage, kills, **given)


def run_of(root: Path) -> RunFiles:
    return RunFiles(root / "runs" / "crashed")


def losses(root: Path) -> dict[tuple[str, int], float]:
    points = MetricsStore(run_of(root).metrics).read(0, 10_000, ("loss",)).points
    return {(point.branch, point.step): point.value for point in points}


def both_arms(folder: Path, stage: int) -> dict[str, Any]:
    """One training in place, and the same one in fresh processes."""
    roots = {"in place": folder / "a", "fresh": folder / "b"}
    optimizer = "deepspeed" if stage == 3 else "hf"
    trainings = [
        rolled_back(roots["in place"], stage, optimizer=optimizer),
        rolled_back(roots["fresh"], stage, optimizer=optimizer, fresh=True),
    ]
    return {"roots": roots, "answers": dict(zip(roots, run_crashes(trainings, 2, folder), strict=True))}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With ZeRO 1."""
    return both_arms(tmp_path_factory.mktemp("rollback"), 1)


def test_rollback_in_place_equals_fresh_processes(arms: dict[str, Any]) -> None:
    assert_in_place_equals_fresh(arms)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_rollback_in_place_equals_fresh_processes_with_every_stage(tmp_path: Path, stage: int) -> None:
    assert_in_place_equals_fresh(both_arms(tmp_path, stage))


def assert_in_place_equals_fresh(arms: dict[str, Any]) -> None:
    assert arms["answers"]["in place"]["generations"] == 1, "the processes lived through all of it"
    assert arms["answers"]["fresh"]["generations"] == 1 + len(ROLLBACKS)
    assert_equal_ends(arms["answers"]["fresh"], arms["answers"]["in place"])
    ours, theirs = losses(arms["roots"]["in place"]), losses(arms["roots"]["fresh"])
    common = ours.keys() & theirs.keys()
    assert {branch for branch, _ in common} == {"main", "branch-2", "second-try", "branch-3"}
    assert {key: ours[key] for key in common} == {key: theirs[key] for key in common}


def test_trainings_that_were_left_are_not_kept_in_memory(arms: dict[str, Any]) -> None:
    """Only the last one is left: there were four before it."""
    assert all(rank["engines"] == 1 for rank in arms["answers"]["in place"]["ranks"])


def test_rollback_leaves_a_tree_in_the_journal(arms: dict[str, Any]) -> None:
    entries = writer.read(run_of(arms["roots"]["in place"]).journal)
    state = fold(entries)
    tree = {each.name: (each.parent, each.step) for each in state.tree.branches.values()}
    assert tree == {
        "main": (None, 0),
        "branch-2": ("main", 3),
        "second-try": ("branch-2", 6),
        "branch-3": ("main", 6),
    }
    starts = [entry.record for entry in entries if isinstance(entry.record, GenerationStarted)]
    begun = [(each.branch, each.step) for each in starts]
    assert begun[:3] == [("main", 0), ("branch-2", 3), ("second-try", 6)]
    assert begun[3] in (("main", 6), ("main", 9)), "from the newest checkpoint of the branch"
    assert begun[4:] == [("branch-3", 6)]
    assert not state.failures, "nobody was lost"
    assert [type(entry.record) for entry in entries].count(BranchResumed) == 1
    assert state.tree.head == "branch-3"


def test_branch_begins_with_its_changes_and_without_what_came_later(arms: dict[str, Any]) -> None:
    entries = writer.read(run_of(arms["roots"]["in place"]).journal)
    began = next(entry for entry in entries if isinstance(entry.record, BranchStarted))
    settled = [each.record for each in entries if isinstance(each.record, CommandSettled) and each.seq > began.seq]
    first = [each for each in settled if each.generation == 2]
    assert [(each.status, each.step) for each in first[:2]] == [("applied", 3), ("applied", 3)]
    assert first[0].after is not None
    assert set(first[0].after["lr"]) == {0.004}
    used = arms["answers"]["in place"]["ranks"][0]["used"]
    assert used  # of the last branch: the held rate of branch-2 is none of its history
    assert all(rate != 0.004 for rates in used.values() for rate in rates)


@pytest.mark.parametrize("another", [False, True], ids=["damaged", "another of its name"])
def test_rollback_to_a_damaged_checkpoint_is_refused_and_training_goes_on(tmp_path: Path, another: bool) -> None:
    damaged = rolled_back(
        tmp_path / "a",
        2,
        asked=[[11, {"kind": "rollback", "checkpoint": "step-00000003-g1"}]],
        kills=[[1, 8, "forward"]],
        damage={"generation": 1, "oldest": 1, "another": another},
    )
    (answer,) = run_crashes([damaged], 2, tmp_path)
    assert answer["ranks"][0]["step"] == 16
    state = fold(writer.read(run_of(tmp_path / "a").journal))
    (refused,) = [life.settled for life in state.commands.values() if life.command.intent.kind == "rollback"]
    assert refused is not None
    assert refused.status == "rejected"
    expected = "differs from the one recorded in the journal" if another else "differs from what was saved"
    assert expected in str(refused.reason)
    assert list(state.tree.branches) == ["main"]


def test_rank_that_dies_on_a_branch_comes_back_to_it(tmp_path: Path) -> None:
    rollbacks = [[8, {"kind": "rollback", "checkpoint": "step-00000003-g1", "first": [HELD]}]]
    trainings = [
        rolled_back(tmp_path / "a", 2, asked=rollbacks),
        rolled_back(tmp_path / "b", 2, asked=rollbacks, kills=[[1, 13, "backward"]]),
    ]
    answers = run_crashes(trainings, 2, tmp_path)
    assert [life["kill"] for life in answers[1]["died"]] == [[1, 13, "backward"]]
    assert_equal_ends(*answers)
    starts = [
        entry.record
        for entry in writer.read(run_of(tmp_path / "b").journal)
        if isinstance(entry.record, GenerationStarted)
    ]
    assert [each.branch for each in starts] == ["main", "branch-2", "branch-2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_twenty_rollbacks_in_place_equal_twenty_in_fresh_processes(tmp_path: Path, stage: int) -> None:
    """One after the other, each from another step, every branch for some steps: all losses, and the end, bit-equal."""
    changes = [HALVED, HELD, WEIGHT_DECAY]
    asked: list[list[Any]] = [
        [5 + number % 5, {"kind": "rollback", "checkpoint": "step-00000003-g1", "first": [changes[number % 3]]}]
        for number in range(20)
    ]
    spec = {"steps": 12, "asked": asked, "optimizer": "deepspeed" if stage == 3 else "hf"}
    in_place, fresh = run_crashes(
        [rolled_back(tmp_path / "a", stage, **spec), rolled_back(tmp_path / "b", stage, fresh=True, **spec)],
        2,
        tmp_path,
    )
    assert (in_place["generations"], fresh["generations"]) == (1, 21)
    assert_equal_ends(fresh, in_place)
    ours, theirs = losses(tmp_path / "a"), losses(tmp_path / "b")
    common = ours.keys() & theirs.keys()
    assert len({branch for branch, _ in common}) == 21
    assert {key: ours[key] for key in common} == {key: theirs[key] for key in common}
    print(f"ZeRO {stage}: 20 of 20 branches, {len(common)} losses equal")
