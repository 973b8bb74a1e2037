"""Scripts of strangers: steered on all ranks, killed at a random step, equal bit for bit at every step, and replayed.

pytest tests/strangers -k masked_lm
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from control_plane.compare.replay_check import judge
from control_plane.core.model.records import GenerationStarted, Parent, StateDigested
from control_plane.core.model.state import fold
from control_plane.core.rules.branch_rules import Origin
from control_plane.core.rules.digests import compare
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.transfer import write_origin
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.crashes import run_crashes
from tests.strangers.catalog import RANKS, SCRIPTS, STRANGERS, Stranger

pytestmark = [pytest.mark.jobs, pytest.mark.timeout(900)]

SEED = 20261128


def files_of(root: Path) -> RunFiles:
    return RunFiles(root / "runs" / "crashed")


def life(stranger: Stranger, root: Path, kills: list[list[Any]], is_replay: bool = False) -> dict[str, Any]:
    return {
        "function": "tests.strangers.lives:live",
        "root": str(root),
        "script": str(SCRIPTS / stranger.script),
        "args": stranger.args.split(),
        "every_steps": 0 if is_replay else stranger.every_steps,
        "seed": SEED,
        "kills": kills,
        "asked": [] if is_replay else [[training, intent, step] for training, step, intent in stranger.asked],
    }


def digested(root: Path) -> dict[int, list[StateDigested]]:
    """By the script's training."""
    streams, training_of = dict[int, list[StateDigested]](), dict[int, int]()
    for entry in writer.read(files_of(root).journal):
        record = entry.record
        if isinstance(record, GenerationStarted):
            training_of[record.generation] = record.training
        elif isinstance(record, StateDigested):
            streams.setdefault(training_of[record.generation], []).append(record)
    return streams


def left_by(stranger: Stranger, root: Path) -> dict[str, str]:
    paths = [files_of(root).work / name for name in stranger.left]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def assert_carried_out(stranger: Stranger, root: Path) -> None:
    """Every command was applied where it was asked for, and all ranks read the same back."""
    lives = list(fold(writer.read(files_of(root).journal)).commands.values())
    assert len(lives) == len(stranger.asked)
    for asked, (training, step, _) in zip(lives, stranger.asked, strict=True):
        settled = asked.settled
        assert settled is not None, asked
        assert (settled.status, settled.step, asked.training) == ("applied", step, training), settled
        assert len(settled.ranks) == RANKS, settled
        assert all(reading == settled.ranks[0] for reading in settled.ranks), settled


def assert_equal(stranger: Stranger, undisturbed: Path, killed: Path, about: str) -> None:
    """The state after each step, and the files that are left."""
    ours, theirs = digested(undisturbed), digested(killed)
    assert sorted(ours) == sorted(theirs) == list(range(1, len(stranger.steps) + 1))
    for training, steps in enumerate(stranger.steps, start=1):
        found = compare(ours[training], theirs[training])
        assert set(found.steps) >= set(range(1, steps + 1)), about
        assert found.first is None, f"step {found.first.step} of training {training} differs; {about}"
        assert found.unlike == found.our_contradictions == found.their_contradictions == (), about
    assert left_by(stranger, undisturbed) == left_by(stranger, killed), about


def replay(stranger: Stranger, source: Path, root: Path) -> Any:
    files = files_of(root)
    files.root.mkdir(parents=True)
    schedule = recorded(writer.read(files_of(source).journal))
    write_origin(files, Origin(parent=Parent(kind="replay", run="crashed"), scheduled=schedule))
    run_crashes([life(stranger, root, [], is_replay=True)], RANKS, root)
    return judge(files, files_of(source))


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda each: each.name)
def test_three_lines_are_all_that_is_ours(stranger: Stranger) -> None:
    lines = (SCRIPTS / stranger.script).read_text().splitlines()
    marked = [line.rsplit("  # ", 1)[-1] for line in lines if line.endswith(("  # 1", "  # 2", "  # 3"))]
    assert marked in (["1", "2"], ["1", "2", "3"])
    assert [line for line in lines if "ray_jobs" in line and not line.endswith("  # 1")] == []


@pytest.mark.parametrize(
    "stranger",
    [pytest.param(each, id=each.name, marks=[] if each.quick else [pytest.mark.slow]) for each in STRANGERS],
)
def test_script_is_steered_killed_and_replayed(stranger: Stranger, tmp_path: Path) -> None:
    undisturbed, killed, kill = tmp_path / "undisturbed", tmp_path / "killed", stranger.kill()
    about = f"seed {stranger.seed} kills rank {kill[0]} in training {kill[1]}, step {kill[2]}, {kill[3]}"
    print(about)
    answers = run_crashes([life(stranger, undisturbed, []), life(stranger, killed, [kill])], RANKS, tmp_path)
    assert [each["generations"] for each in answers] == [1, 2], about
    assert_carried_out(stranger, undisturbed)
    assert_carried_out(stranger, killed)
    assert_equal(stranger, undisturbed, killed, about)
    verdict = replay(stranger, killed, tmp_path / "replay")
    print(verdict.sentence())
    assert verdict.verdict == "identical", f"{verdict.sentence()}; {about}"
    assert left_by(stranger, tmp_path / "replay") == left_by(stranger, killed), about
