"""Killed and started again, a training ends bit for bit as if nothing had happened: commands, schedule and dropout.

The slow ones are the proof at full length; the seed of a failure is in the assertion.
"""

import random
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.support.streams import assert_same_but_for, flips, repeated_steps
from tests.ray_jobs.trials.crash_trials import PHASES

pytestmark = pytest.mark.jobs

EPOCH_STEPS = 12  # 50 samples, 4 a step

EQUAL = ("state", "random", "step", "losses", "evaluated", "weights")


def command(number: int, at: int, **intent: Any) -> dict[str, Any]:
    return {"uuid": str(uuid.UUID(int=number)), "author": "test", "intent": intent, "not_before_step": at}


def commands(steps: int) -> list[dict[str, Any]]:
    """Learning rates between the crashes: a factor, a held value, a factor of it, a shape that is kept again."""
    changes: list[dict[str, Any]] = [
        {"factor": 0.5},
        {"value": 0.004, "schedule": "hold"},
        {"factor": 2.0, "group": 0},
        {"value": 0.001},
    ]
    return [
        command(number + 1, (number + 1) * steps // (len(changes) + 1), kind="set_learning_rate", **change)
        for number, change in enumerate(changes)
    ]


def training(root: Path, stage: int | None, kills: list[list[Any]], **spec: Any) -> dict[str, Any]:
    steps = spec.get("steps", 18)  # an epoch and a half
    defaults = {"scheduler": "hf", "optimizer": "hf", "every_steps": 3, "eval_steps": 5, "commands": commands(steps)}
    return {**defaults, "steps": steps, **spec, "stage": stage, "root": str(root), "kills": kills}


def assert_equal_ends(undisturbed: dict[str, Any], killed: dict[str, Any], about: object = "") -> None:
    for rank, (mine, theirs) in enumerate(zip(killed["ranks"], undisturbed["ranks"], strict=True)):
        for what in EQUAL:
            assert mine[what] == theirs[what], f"{what} of rank {rank} differs; {about}"


KILLS: dict[int, list[list[Any]]] = {
    1: [[1, 5, "forward"], [1, 9, "save"], [0, 17, "boundary"]],
    3: [[0, 7, "backward"], [1, 17, "forward"]],
}
FLIPS = flips(2, 10, 16)
"""Bits of live tensors: flipped after a step, seen in its digest, and flipped back before the next one. No save sees
them."""


@dataclass(frozen=True)
class Pair:
    """The same training, undisturbed and killed, under one ZeRO stage: where they lie, and what was seen of them."""

    stage: int
    undisturbed: Path
    killed: Path
    answers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    folder = tmp_path_factory.mktemp("killed")
    trainings = [
        training(
            folder / f"zero{stage}-{len(given)}",
            stage,
            given,
            optimizer="hf" if stage == 1 else "deepspeed",
            patient=True,
            digest_every=1,
            flips=FLIPS if given else [],
        )
        for stage in KILLS
        for given in ([], KILLS[stage])
    ]
    answers = run_crashes(trainings, 2, folder)
    return [
        Pair(
            stage, folder / f"zero{stage}-0", folder / f"zero{stage}-{len(KILLS[stage])}", answers[2 * at : 2 * at + 2]
        )
        for at, stage in enumerate(KILLS)
    ]


def test_killed_training_ends_as_if_nothing_had_happened(pairs: list[Pair]) -> None:
    for pair in pairs:
        undisturbed, killed = pair.answers
        assert [life["kill"] for life in killed["died"]] == KILLS[pair.stage]
        assert killed["ranks"][0]["began_at"] > EPOCH_STEPS + 1, "restored in the middle of the second epoch"
        assert_equal_ends(undisturbed, killed, KILLS[pair.stage])


def test_killed_training_has_the_digests_of_an_undisturbed_one_and_flipped_bits_are_named(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert repeated_steps(pair.killed), "some steps were made, and digested, twice"
        assert_same_but_for(FLIPS, pair.undisturbed, pair.killed, range(19))


def test_killed_training_repeats_its_commands_at_their_steps(tmp_path: Path) -> None:
    answers = run_crashes(
        [
            training(tmp_path / "a", 2, []),
            training(tmp_path / "b", 2, [[0, 9, "boundary"]], every_steps=6, patient=True),
        ],
        2,
        tmp_path,
    )
    assert_equal_ends(*answers)
    entries = writer.read(RunFiles(tmp_path / "b" / "runs" / "crashed").journal)
    lines = [entry.line() for entry in entries]
    settled = {line["uuid"]: line["body"]["step"] for line in lines if line["type"] == "CommandSettled"}
    repeated = {line["uuid"]: line["body"]["step"] for line in lines if line["type"] == "CommandRepeated"}
    assert repeated, "the kill came after a command and before the next checkpoint: one had to be repeated"
    assert all(settled[uuid] == step for uuid, step in repeated.items())
    assert sorted(settled.values()) == [int(each["not_before_step"]) for each in commands(18)]


@pytest.mark.parametrize("another", [False, True], ids=["damaged", "another of its name"])
def test_damaged_checkpoint_is_left_out_and_the_one_before_is_restored(tmp_path: Path, another: bool) -> None:
    damage = {"generation": 1, "newest": 1, "another": another}
    answers = run_crashes(
        [
            training(tmp_path / "a", 1, []),
            training(tmp_path / "b", 1, [[1, 11, "forward"]], damage=damage, patient=True),
        ],
        2,
        tmp_path,
    )
    assert_equal_ends(*answers)
    starts = [
        entry.record
        for entry in writer.read(RunFiles(tmp_path / "b" / "runs" / "crashed").journal)
        if entry.record.type == "GenerationStarted"
    ]
    restarted = starts[-1]
    assert len(restarted.refused) == 1
    expected = "differs from the one recorded in the journal" if another else "differs from what was saved"
    assert expected in restarted.refused[0].reason
    assert 0 < restarted.step < int(restarted.refused[0].checkpoint.split("-")[1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_killed_at_every_step_ends_as_if_nothing_had_happened(tmp_path: Path, stage: int) -> None:
    """60 steps, a kill in each of them, at a random rank and phase: 60 kills and 60 restorations a stage."""
    seed = 20261122 + stage
    chance = random.Random(seed)
    kills = [[chance.randrange(2), step, chance.choice(PHASES[:3])] for step in range(2, 62 - 1)]
    kills += [[chance.randrange(2), step, "save"] for step in (20, 40)]
    kills.sort(key=lambda kill: int(kill[1]))
    optimizer = "deepspeed" if stage == 3 else "hf"
    spec: dict[str, Any] = {"steps": 60, "every_steps": 1, "optimizer": optimizer}
    answers = run_crashes(
        [training(tmp_path / "a", stage, [], **spec), training(tmp_path / "b", stage, kills, **spec)], 2, tmp_path
    )
    assert_equal_ends(*answers, f"seed {seed}")
    assert len(answers[1]["died"]) >= 59
    print(f"ZeRO {stage}: {len(answers[1]['died'])} kills, all equal")
