"""A checkpoint of another run is brought into a run's folder: whole, under its own signature, or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.errors import Conflict, Damaged, NotFound, Refused, SteerwayError, Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.storage import failpoints
from control_plane.storage.checkpoint.store import MANIFEST, SigningKey, commit, verify
from control_plane.storage.checkpoint.transfer import adopt
from control_plane.storage.failpoints import arm
from control_plane.storage.layout import RunFiles
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import contents, name_of

HERE = f"{name_of(9)}-of-fork"


@pytest.fixture
def family(tmp_path: Path) -> tuple[RunFiles, RunFiles]:
    """A run and its fork, which trained two steps more."""
    return lay(tmp_path, "parent", 1, 5), lay(tmp_path, "fork", 7, 9, parent="parent", max_steps=200)


def bring(
    files: RunFiles, checkpoint: str | None = None, run: str = "fork", branch: str = "best", known: Any = ()
) -> Any:
    return adopt(files, AdoptCheckpoint(run=run, checkpoint=checkpoint), branch, known)


def verified(files: RunFiles, name: str = HERE) -> Any:
    return verify(files.checkpoints / name, SigningKey.of_installation(files.signing_key))


def test_newest_checkpoint_of_a_fork_becomes_the_run_s_own(family: tuple[RunFiles, RunFiles]) -> None:
    parent, fork = family
    found = bring(parent)
    manifest = verified(parent)
    assert (manifest.run, manifest.branch, manifest.checkpoint, manifest.step) == ("parent", "best", HERE, 9)
    assert (found.checkpoint.checkpoint, found.checkpoint.branch, found.checkpoint.generation) == (HERE, "best", 0)
    assert (found.origin.kind, found.origin.run, found.origin.checkpoint, found.origin.step) == (
        "adopted",
        "fork",
        name_of(9),
        9,
    )
    assert found.differing == {"training.max_steps": [200, 100]}
    for path, data in contents(9).items():
        assert (parent.checkpoints / HERE / path).read_bytes() == data
    shutil.rmtree(fork.root)
    assert verified(parent).step == 9, "it is the run's own, whatever becomes of the fork"


def test_settings_that_differ_are_told_without_secrets(tmp_path: Path) -> None:
    """They go to the journal, which people pass on."""
    said = "name: {}\nseed: 7\ndata: {{access_token: canary-{}, source: {}}}\nworkload: {{args: [--key, canary-{}]}}\n"
    parent = lay(tmp_path, "parent", 1, config=said.format("parent", 1, "wiki", 1))
    lay(tmp_path, "fork", 9, parent="parent", config=said.format("fork", 2, "x" * 99, 2))
    differing = bring(parent).differing
    assert differing == {
        "data.access_token": ["(not shown)", "(not shown)"],
        "data.source": ["(not shown)", "wiki"],
        "workload.args": ["(not shown)", "(not shown)"],
    }
    assert "canary" not in str(differing)


def test_any_checkpoint_can_be_chosen_and_a_fork_takes_back_what_its_parent_has(
    family: tuple[RunFiles, RunFiles],
) -> None:
    parent, fork = family
    assert bring(parent, name_of(7)).checkpoint.step == 7
    assert bring(fork, run="parent").checkpoint.checkpoint == f"{name_of(5)}-of-parent"


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"checkpoint": "step-77"}, NotFound, "run fork has no checkpoint step-77; the latest are step-00000007-g1"),
        ({"run": "nobody"}, NotFound, "there is no run 'nobody'"),
        ({"run": "stranger"}, Conflict, "runs parent and stranger have no common ancestor"),
        ({"run": "other-stage"}, Conflict, "deepspeed.zero_optimization.stage is 3 in run"),
        ({"run": "empty"}, NotFound, "run empty has no checkpoint to adopt; the latest are none"),
        ({"known": (HERE,)}, Conflict, f"was already adopted as checkpoint {HERE}"),
    ],
)
def test_adoption_that_makes_no_sense_is_refused_and_leaves_nothing(
    family: tuple[RunFiles, RunFiles], tmp_path: Path, asked: dict[str, Any], kind: type[Refused], said: str
) -> None:
    parent, _ = family
    lay(tmp_path, "stranger", 3)
    lay(tmp_path, "other-stage", 3, parent="parent", stage=3)
    lay(tmp_path, "empty", parent="parent")
    with pytest.raises(kind, match=said.replace("(", r"\(")):
        bring(parent, **asked)
    assert sorted(os.listdir(parent.checkpoints)) == [name_of(1), name_of(5)]


def test_kin_is_found_through_runs_that_are_gone(tmp_path: Path) -> None:
    one = lay(tmp_path, "one", 3, parent="gone")
    lay(tmp_path, "other", 4, parent="gone")
    assert bring(one, run="other").checkpoint.step == 4


@pytest.mark.parametrize("damage", ["flip", "remove", "unsigned"])
def test_damaged_checkpoint_is_refused_with_its_file(family: tuple[RunFiles, RunFiles], damage: str) -> None:
    parent, fork = family
    shard = fork.checkpoints / name_of(9) / "state/optimizer/rank-1.pt"
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[3] ^= 1
        shard.write_bytes(data)
    elif damage == "remove":
        shard.unlink()
    else:
        manifest = shard.parents[2] / MANIFEST
        manifest.write_text(manifest.read_text().replace("good", "best"))
    with pytest.raises(Damaged, match=r"rank-1\.pt|manifest"):
        bring(parent)
    assert not (parent.checkpoints / HERE).exists()


def test_what_a_crash_has_left_makes_way(family: tuple[RunFiles, RunFiles]) -> None:
    """Before the journal knew it: half of the files, or all of them under another branch's name."""
    parent, _ = family
    half = parent.checkpoints / HERE / "state"
    half.mkdir(parents=True)
    (half / "half.pt").write_bytes(b"x")
    assert bring(parent).checkpoint.branch == "best"
    assert bring(parent, branch="better").checkpoint.branch == verified(parent).branch == "better"


def test_repeated_adoption_finds_what_the_first_has_brought(family: tuple[RunFiles, RunFiles]) -> None:
    parent, _ = family
    first = bring(parent)
    places = {path: path.stat().st_ino for path in (parent.checkpoints / HERE).rglob("*.pt")}
    assert bring(parent) == first
    assert {path: path.stat().st_ino for path in (parent.checkpoints / HERE).rglob("*.pt")} == places


@pytest.mark.parametrize("point", [point for point in failpoints.POINTS if point.startswith("inherited.")])
def test_full_disk_is_told_and_leaves_nothing(
    family: tuple[RunFiles, RunFiles], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, _ = family

    def no_links(*_: object, **__: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", no_links)
    arm(f"{point}=error:ENOSPC")
    try:
        with pytest.raises(Unavailable, match="could not be transferred to run parent: No space left"):
            bring(parent)
    finally:
        arm("")
    assert not (parent.checkpoints / HERE).exists()
    assert bring(parent).checkpoint.checkpoint == HERE


def test_config_that_cannot_be_read_is_told(family: tuple[RunFiles, RunFiles]) -> None:
    parent, fork = family
    fork.config.write_text("a: [")
    with pytest.raises(SteerwayError, match=r"config\.yaml cannot be read"):
        bring(parent)


def test_another_checkpoint_than_the_fork_recorded_is_not_brought(family: tuple[RunFiles, RunFiles]) -> None:
    parent, fork = family
    root, key = fork.checkpoints / name_of(9), SigningKey.of_installation(fork.signing_key)
    commit(root, verify(root, key).model_copy(update={"saved_at": "2020-01-01T00:00:00+00:00"}), key)
    with pytest.raises(Damaged, match="differs from the one recorded in the journal"):
        bring(parent)
    assert not (parent.checkpoints / HERE).exists()
