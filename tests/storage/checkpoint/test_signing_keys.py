"""Signing keys are rotated, lost and exchanged: one signs, those that are listed count, and no others."""

import os
import shutil
from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged, SteerwayError
from control_plane.storage.checkpoint.signing import ACCEPTED, rotate
from control_plane.storage.checkpoint.store import SigningKey, resign, verify
from control_plane.storage.failpoints import POINTS
from control_plane.storage.ownership import signed_config
from tests.cli.conftest import Steer, steer
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import name_of, save
from tests.storage.test_failpoints import killed_at

__all__ = ["steer"]

KEY = [point for point in POINTS if point.startswith("key.")]


def signer(root: Path, key: SigningKey) -> str:
    """The name of the key that signed a checkpoint."""
    return verify(root, key).signature.partition(":")[0]


def test_what_the_old_key_signed_is_accepted_and_the_fresh_one_signs(tmp_path: Path) -> None:
    files = lay(tmp_path, "mine", 1)
    path, old = files.signing_key, files.checkpoints / name_of(1)
    before = SigningKey.of_installation(path)
    fresh, kept = rotate(path)
    assert fresh.name != before.name
    assert fresh.accepted == (before.name,)
    assert (kept, kept.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (
        tmp_path / ACCEPTED / before.name,
        0o600,
        0o600,
    )
    assert signer(old, fresh) == before.name
    assert signer(save(files.checkpoints, 2, fresh), fresh) == fresh.name
    assert signed_config(files) is not None
    third, _ = rotate(path)
    assert set(third.accepted) == {before.name, fresh.name}
    assert signer(old, third) == before.name
    kept.unlink()
    with pytest.raises(Damaged, match=f"by another installation \\(key {before.name}"):
        verify(old, SigningKey.of_installation(path))
    assert signed_config(files) is None, "the config was signed with it as well"


def test_what_a_lost_key_has_signed_is_trusted_once_and_ones_own_again(tmp_path: Path) -> None:
    files = lay(tmp_path, "mine", 1)
    root = files.checkpoints / name_of(1)
    files.signing_key.unlink()
    key = SigningKey.of_installation(files.signing_key)
    with pytest.raises(Damaged, match="by another installation"):
        verify(root, key)
    resign(root, key)
    assert signer(root, key) == key.name


def test_two_installations_that_accept_each_other_take_each_others_checkpoints(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "two", "three")]
    keys = [SigningKey.of_installation(home / "checkpoint-key") for home in homes]
    root = save(tmp_path / "store", 1, keys[0])
    (homes[1] / ACCEPTED).mkdir(mode=0o700)
    shutil.copy(homes[0] / "checkpoint-key", homes[1] / ACCEPTED / "of-one")
    assert signer(root, SigningKey.of_installation(homes[1] / "checkpoint-key")) == keys[0].name
    with pytest.raises(Damaged, match="by another installation"):
        verify(root, SigningKey.of_installation(homes[2] / "checkpoint-key"))


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o660])
def test_accepted_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    _, kept = rotate(tmp_path / "checkpoint-key")
    kept.chmod(mode)
    with pytest.raises(SteerwayError, match="other users have access to the signing key"):
        SigningKey.of_installation(tmp_path / "checkpoint-key")


def test_accepted_keys_that_others_may_add_to_are_refused(tmp_path: Path) -> None:
    rotate(tmp_path / "checkpoint-key")
    (tmp_path / ACCEPTED).chmod(0o777)
    with pytest.raises(SteerwayError, match="other users may write to"):
        SigningKey.of_installation(tmp_path / "checkpoint-key")
    shutil.rmtree(tmp_path / ACCEPTED)
    (tmp_path / ACCEPTED).mkdir(mode=0o700)
    os.symlink(tmp_path / "checkpoint-key", tmp_path / ACCEPTED / "link")
    with pytest.raises(Damaged, match="is a symbolic link"):
        SigningKey.of_installation(tmp_path / "checkpoint-key")


@pytest.mark.parametrize("point", KEY)
def test_rotation_killed_at_a_failpoint_voids_no_signature(tmp_path: Path, point: str) -> None:
    path = tmp_path / "checkpoint-key"
    root = save(tmp_path / "store", 1, SigningKey.of_installation(path))
    assert killed_at(point, lambda: rotate(path))
    assert verify(root, SigningKey.of_installation(path)).step == 1
    rotate(path)
    assert verify(root, SigningKey.of_installation(path)).step == 1


def test_keys_are_listed_and_rotated_from_the_command_line(
    tmp_path: Path, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    before = SigningKey.of_installation(tmp_path / "checkpoint-key").name
    assert steer("key", "list").stdout == f"signs     {before}\n"
    rotated = steer("key", "rotate")
    after = SigningKey.of_installation(tmp_path / "checkpoint-key").name
    assert (rotated.exit_code, rotated.stdout) == (0, f"signs     {after}\n")
    assert str(tmp_path / ACCEPTED / before) in rotated.stderr
    assert steer("key", "list").stdout == f"signs     {after}\naccepted  {before}\n"
