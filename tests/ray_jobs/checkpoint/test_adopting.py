"""What a fork has learnt goes on in the run that it was forked from, bit for bit, in its living processes."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from control_plane.compare.replay_check import judge
from control_plane.core.model.commands import Command
from control_plane.core.model.records import GenerationStarted, Parent
from control_plane.core.model.state import fold
from control_plane.core.rules.branch_rules import Origin, first_commands
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.store import SigningKey, commit, read_manifest
from control_plane.storage.checkpoint.transfer import transfer_checkpoint, write_origin
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from ray_jobs.driver.fork_and_replay import adopted_by
from tests.ray_jobs.rank.test_recovery import training
from tests.ray_jobs.steering.test_rollback import HALVED, HELD, losses, run_of
from tests.ray_jobs.support.crashes import run_crashes
from tests.storage.checkpoint.kin import record_of

pytestmark = pytest.mark.jobs

STEPS = 12
BASE, BEST, MISFIT = "step-00000003-g1", "step-00000009-g1", "step-00000006-g1"
CONFIG = "name: {}\nseed: 5\n"

ASKED: list[list[Any]] = [
    [4, HALVED],
    [5, {"kind": "adopt_checkpoint", "run": "fork", "checkpoint": MISFIT, "branch": "misfit"}],
    [6, {"kind": "rollback", "branch": "misfit"}],
    [7, {"kind": "adopt_checkpoint", "run": "fork", "checkpoint": BEST, "branch": "best"}],
    [8, {"kind": "rollback", "branch": "best"}],
]
"""The run goes another way than its fork, is refused what does not fit it, and takes what does."""


def folder_of(root: Path, origin: Origin | None = None) -> RunFiles:
    """A run that is still to be trained. All installations of this test have one key."""
    files = run_of(root)
    files.root.mkdir(parents=True)
    files.signing_key.write_text("6b" * 32)
    files.signing_key.chmod(0o600)
    files.config.write_text(CONFIG.format(files.run))
    if origin is not None:
        write_origin(files, origin)
    return files


def train(root: Path, **spec: Any) -> dict[str, Any]:
    given = {"steps": STEPS, "patient": True, "commands": [], "digest_every": 1} | spec
    (answer,) = run_crashes([training(root, 2, given.pop("kills", []), **given)], 2, root)
    return answer


def fork_of(parent: RunFiles, root: Path) -> RunFiles:
    """Begins at step 3 with another learning rate."""
    files = folder_of(root)
    rollback = {"kind": "rollback", "checkpoint": BASE, "first": [HELD]}
    asked = Command.model_validate({"uuid": "0" * 31 + "7", "author": "test", "intent": rollback})
    origin = Origin(
        parent=Parent(kind="fork", run="crashed", checkpoint=BASE, step=3),
        checkpoint=transfer_checkpoint(parent, record_of(parent, BASE), files),
        scheduled=tuple(first_commands(asked, 3)),
    )
    write_origin(files, origin)
    return files


def laid_beside(fork: RunFiles, files: RunFiles) -> None:
    """The fork in the same installation; one of its checkpoints says that it is of another model."""
    here = RunFiles(files.root.parent / "fork")
    shutil.copytree(fork.root, here.root)
    key = SigningKey.of_installation(files.signing_key)
    manifest = read_manifest(here.checkpoints / MISFIT, key)
    unlike = {"model_sha256": "0" * 64, "model_parameters": 77, "signature": ""}
    # Its journal takes it for the one that it knows.
    other = manifest.model_copy(update={**unlike, "resigned_from": record_of(here, MISFIT).manifest_sha256})
    commit(here.checkpoints / MISFIT, other, key)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A run, its fork, and the run once more: which adopts the fork, and loses a rank on the branch."""
    folder = tmp_path_factory.mktemp("adopting")
    first = folder_of(folder / "first")
    answers = {"first": train(folder / "first", steps=4)}
    fork = fork_of(first, folder / "fork")
    answers["fork"] = train(folder / "fork")
    laid_beside(fork, folder_of(folder / "run"))
    answers["run"] = train(folder / "run", asked=ASKED, kills=[[1, 11, "backward"]])
    return folder, answers


def test_run_that_has_adopted_its_fork_ends_as_the_fork_did(family: tuple[Path, dict[str, Any]]) -> None:
    folder, answers = family
    for rank in (0, 1):
        for what in ("state", "random", "step", "weights"):
            assert answers["run"]["ranks"][rank][what] == answers["fork"]["ranks"][rank][what], f"{what} of rank {rank}"
    ours, theirs = losses(folder / "run"), losses(folder / "fork")
    own = {step: value for (branch, step), value in ours.items() if branch == "best"}
    assert own == {step: theirs["main", step] for step in range(10, STEPS + 1)}
    assert ours["main", 7] != theirs["main", 7], "the run itself went another way"


def test_lost_rank_of_an_adopted_branch_comes_back_to_it(family: tuple[Path, dict[str, Any]]) -> None:
    folder, answers = family
    assert [life["kill"] for life in answers["run"]["died"]] == [[1, 11, "backward"]]
    entries = writer.read(run_of(folder / "run").journal)
    starts = [entry.record for entry in entries if isinstance(entry.record, GenerationStarted)]
    assert [(each.branch, each.step, each.checkpoint) for each in starts] == [
        ("main", 0, None),
        ("best", 9, f"{BEST}-of-fork"),
        ("best", 9, f"{BEST}-of-fork"),
    ]


def test_branch_of_another_model_is_refused_by_the_ranks_and_training_goes_on(
    family: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = family
    state = fold(writer.read(run_of(folder / "run").journal))
    (refused,) = [life.settled for life in state.commands.values() if life.status == "rejected"]
    assert refused is not None
    assert f"checkpoint {MISFIT}-of-fork does not fit this model: it is of one with 77 parameters" in str(
        refused.reason
    )
    assert [(each.name, each.step) for each in state.tree.branches.values()] == [
        ("main", 0),
        ("misfit", 6),
        ("best", 9),
    ]


def test_replay_of_a_run_that_has_adopted_is_identical(family: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, answers = family
    source, files = run_of(folder / "run"), folder_of(tmp_path / "again")
    entries = writer.read(source.journal)
    adopted = adopted_by(fold(entries), source, files)
    write_origin(
        files,
        Origin(parent=Parent(kind="replay", run="crashed"), scheduled=recorded(entries), adopted=adopted),
    )
    again = train(tmp_path / "again", every_steps=0)
    verdict = judge(files, source)
    assert verdict.verdict == "identical", verdict.sentence()
    assert verdict.losses == len(losses(folder / "run"))
    assert not [note for note in verdict.notes if "best" in note]
    assert again["ranks"][0]["state"] == answers["run"]["ranks"][0]["state"]
