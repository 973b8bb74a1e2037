"""What lies in a checkpoint's folder beside what was saved, who may change it, and what is read of it in the end."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged
from control_plane.storage.checkpoint.store import SigningKey, open_shard, read_shard, verify
from tests.storage.checkpoint.saved import save


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.of_installation(tmp_path / "key")


@pytest.mark.parametrize(
    "planted", ["latest", "zero_to_fp32.py", "weights.pt", "run.sh", "README", "empty/", "state/empty/", "other/x.txt"]
)
def test_what_a_loader_finds_or_a_person_runs_is_not_accepted_beside_a_manifest(
    tmp_path: Path, key: SigningKey, planted: str
) -> None:
    root = save(tmp_path / "c", 5, key)
    path = root / planted
    (path if planted.endswith("/") else path.parent).mkdir(exist_ok=True)
    if not planted.endswith("/"):
        path.write_text("import os")
    with pytest.raises(Damaged, match=r"contains '.*', which its manifest does not list"):
        verify(root, key)


@pytest.mark.parametrize("note", ["notes.txt", "README.md", ".nfs0000000000000001"])
def test_notes_of_people_may_lie_beside_a_manifest(tmp_path: Path, key: SigningKey, note: str) -> None:
    root = save(tmp_path / "c", 5, key)
    (root / note).write_text("the best so far")
    assert verify(root, key).step == 5


def test_checkpoint_that_is_a_link_to_a_folder_elsewhere_is_refused(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "c", 5, key)
    root.rename(tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match=f"checkpoint {root.name} is a symbolic link"):
        verify(root, key)


def test_checkpoint_of_which_others_may_change_a_file_is_refused(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "c", 5, key)
    shard = root / "state/rank-1-random.pt"
    for mode, taken in ((0o644, True), (0o664, False), (0o646, False), (0o600, True)):
        shard.chmod(mode)
        if taken:
            assert verify(root, key).step == 5
            continue
        with pytest.raises(Damaged, match=r"other users may write to state/rank-1-.*chmod -R go-w"):
            verify(root, key)


def test_shard_is_read_as_what_was_compared_whatever_is_put_in_its_place(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "c", 5, key)
    shard = next(each for each in verify(root, key).shards if each.path == "state/rank-1-random.pt")
    saved, path = (root / shard.path).read_bytes(), root / shard.path
    with open_shard(root, shard) as file:
        path.rename(tmp_path / "aside")
        path.write_bytes(b"x" * shard.size_bytes)
        assert file.read() == saved
    for read in (open_shard, read_shard):
        with pytest.raises(Damaged, match="differs from what was saved"):
            read(root, shard)
    path.unlink()
    path.symlink_to(tmp_path / "aside")
    for read in (open_shard, read_shard):
        with pytest.raises(OSError, match="symbolic links"):
            read(root, shard)
    path.unlink()
    (tmp_path / "aside").rename(path)
    assert read_shard(root, shard) == saved
