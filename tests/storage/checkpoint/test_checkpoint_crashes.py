"""Deaths during a save, a removal and the making of the key: at every file operation, and by a loss of power."""

import os
import shutil
from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged
from control_plane.storage.checkpoint.store import (
    MANIFEST,
    SigningKey,
    discard,
    leftovers,
    list_checkpoints,
    verify,
)
from tests.storage.checkpoint.saved import contents, name_of, newest_good, save
from tests.storage.failpoints import deaths
from tests.storage.power import Power

OLD, NEW = 1, 2


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.of_installation(tmp_path / "key")


@pytest.fixture
def folder(tmp_path: Path, key: SigningKey) -> Path:
    save(tmp_path / "checkpoints", OLD, key)
    return tmp_path / "checkpoints"


def has_all(root: Path, step: int) -> bool:
    """Judged by the bytes themselves, not by the store."""
    return all((root / path).is_file() and (root / path).read_bytes() == data for path, data in contents(step).items())


def test_save_killed_at_every_file_operation_leaves_nothing_selectable_but_incomplete(
    folder: Path, key: SigningKey
) -> None:
    root, kept = folder / name_of(NEW), list[bool]()

    def judge(where: str) -> None:
        chosen, _ = newest_good(folder, key, [name_of(NEW), name_of(OLD)])
        exists = (root / MANIFEST).exists()
        assert not exists or has_all(root, NEW), where
        assert chosen is not None, where
        assert chosen.step == (NEW if exists else OLD), where
        assert [m.step for m in list_checkpoints(folder, key)] == ([OLD, NEW] if exists else [OLD]), where
        assert leftovers(folder, older_than_s=-1) == ([root] if root.exists() and not exists else []), where
        kept.append(exists)

    count = deaths(lambda: save(folder, NEW, key), lambda: shutil.rmtree(root, ignore_errors=True), judge)
    assert count > 80
    assert {True, False} == set(kept), "deaths before and after the manifest"


def test_save_repeated_over_the_remains_of_every_death_is_good(folder: Path, key: SigningKey) -> None:
    root = folder / name_of(NEW)

    def judge(where: str) -> None:
        save(folder, NEW, key)
        assert verify(root, key).step == NEW, where

    assert deaths(lambda: save(folder, NEW, key), lambda: shutil.rmtree(root, ignore_errors=True), judge, (True,)) > 40


def test_removal_killed_at_every_file_operation_leaves_nothing_selectable_but_incomplete(
    folder: Path, key: SigningKey
) -> None:
    root = folder / name_of(NEW)

    def judge(where: str) -> None:
        if (root / MANIFEST).exists():
            assert verify(root, key).step == NEW, where
        elif root.exists():
            assert leftovers(folder, older_than_s=-1) == [root], where
        assert verify(folder / name_of(OLD), key).step == OLD, where
        discard(root.parent, root.name)
        discard(root.parent, root.name)
        assert [path.name for path in folder.iterdir()] == [name_of(OLD)], where

    assert deaths(lambda: discard(root.parent, root.name), lambda: void(save(folder, NEW, key)), judge) > 15


def void(value: object) -> None:
    """Take a value that is not wanted."""


def test_key_whose_making_is_killed_at_every_file_operation_is_whole_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "installation" / "key"

    def judge(where: str) -> None:
        made = path.read_text() if path.exists() else None
        assert made is None or len(made.strip()) == 64, where
        key = repr(SigningKey.of_installation(path))
        assert repr(SigningKey.of_installation(path)) == key, where
        assert made is None or path.read_text() == made, where

    def make() -> SigningKey:
        return SigningKey.of_installation(path)

    assert deaths(make, lambda: shutil.rmtree(path.parent, ignore_errors=True), judge) > 10


def test_save_before_every_loss_of_power_is_complete_or_no_checkpoint(tmp_path: Path, key: SigningKey) -> None:
    power = Power(tmp_path / "checkpoints")
    with power.watched():
        root = save(tmp_path / "checkpoints", NEW, key)
    for number, remains in power.losses(tmp_path / "after"):
        found = remains / root.name
        if not (found / MANIFEST).exists():
            continue
        try:
            assert verify(found, key).step == NEW
        except Damaged as error:
            pytest.fail(f"after operation {number} of {len(power.log)}: {error.reason}")


def test_save_that_was_confirmed_survives_a_loss_of_power(tmp_path: Path, key: SigningKey) -> None:
    power = Power(tmp_path / "checkpoints")
    with power.watched():
        root = save(tmp_path / "checkpoints", NEW, key)
    remains = power.certain(tmp_path / "after")
    assert verify(remains / root.name, key).step == NEW


@pytest.mark.parametrize("forgotten", ["fsync of files", "fsync of folders"])
def test_save_without_fsync_does_not_survive_a_loss_of_power(tmp_path: Path, key: SigningKey, forgotten: str) -> None:
    """Guards the two tests above."""
    power, sync = Power(tmp_path / "checkpoints"), os.fsync

    def forgetful(descriptor: int) -> None:
        is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        if is_folder != (forgotten == "fsync of folders"):
            sync(descriptor)

    with power.watched():
        watched = os.fsync
        sync = watched
        # Undone within the block: what is put back is what was watched, and is itself put back by the watch.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "fsync", forgetful)
            root = save(tmp_path / "checkpoints", NEW, key)
    with pytest.raises(Damaged):
        verify(power.certain(tmp_path / "after") / root.name, key)
