"""The checkpoint store as its users meet it: shards, manifests, lists, keys, room."""

import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.errors import Damaged, Invalid, SteerwayError
from control_plane.storage.checkpoint import manifest as manifests
from control_plane.storage.checkpoint.store import (
    MANIFEST,
    Manifest,
    Shard,
    ShardFile,
    SigningKey,
    commit,
    discard,
    examine,
    hash_shard,
    leftovers,
    list_checkpoints,
    read_manifest,
    resign,
    space_shortage,
    verify,
)
from tests.storage.checkpoint.saved import contents, manifest, name_of, save


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.of_installation(tmp_path / "key")


def test_shard_file_describes_what_a_second_reading_finds(tmp_path: Path) -> None:
    with ShardFile(tmp_path, "state/deep/a.pt", rank=1) as file:
        assert file.write(b"abc") == 3
        assert file.write(memoryview(bytearray(8)).cast("Q")) == 8
        assert file.tell() == 11
        assert not (tmp_path / "state/deep/a.pt").exists(), "it has no name before it is durable"
    assert file.shard == hash_shard(tmp_path, tmp_path / "state/deep/a.pt", 1)
    assert file.shard.sha256 == hashlib.sha256(b"abc" + bytes(8)).hexdigest()
    assert [path.name for path in (tmp_path / "state/deep").iterdir()] == ["a.pt"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_shard_file_takes_what_torch_saves(tmp_path: Path, as_zip: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {"weights": torch.arange(5000.0), "step": 3, "half": torch.ones(7, dtype=torch.bfloat16)}
    with ShardFile(tmp_path, "state/model.pt", rank=0) as file:
        torch.save(state, file, _use_new_zipfile_serialization=as_zip)
    plain = io.BytesIO()
    torch.save(state, plain, _use_new_zipfile_serialization=as_zip)
    loaded = torch.load(tmp_path / "state/model.pt", weights_only=True)
    assert torch.equal(loaded["weights"], state["weights"])
    assert file.shard.size_bytes == len(plain.getvalue())
    assert file.shard == hash_shard(tmp_path, tmp_path / "state/model.pt", 0)


def write_two(file: ShardFile, blocks: Iterator[bytes]) -> None:
    for _ in range(2):
        file.write(next(blocks))


def test_shard_file_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    torn = iter([b"half"])
    with pytest.raises(StopIteration), ShardFile(tmp_path, "state/a.pt", rank=0) as file:
        write_two(file, torn)
    assert list((tmp_path / "state").iterdir()) == []
    with pytest.raises(ValueError, match="not complete"):
        _ = file.shard
    with pytest.raises(ValueError, match="is closed"):
        file.write(b"more")


@pytest.mark.parametrize("path", ["../a.pt", "/a.pt", "state/../../a.pt", "", MANIFEST])
def test_shard_file_outside_of_its_checkpoint_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Invalid, match="below the checkpoint"):
        ShardFile(tmp_path / "c", path, rank=0)


def test_commit_answers_the_digest_of_the_file_and_what_is_read_is_what_was_meant(
    tmp_path: Path, key: SigningKey
) -> None:
    root = tmp_path / name_of(5)
    with ShardFile(root, "state/a.pt", rank=1) as file:
        file.write(b"abc")
    meant = manifest(5, (file.shard,), knobs={"lr": (1e-4, 0.1 + 0.2), "nested": {3: None, "x": -0.0, "é": "\n"}})
    digest = commit(root, meant, key)
    assert digest == hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    found = verify(root, key)
    assert found.knobs == {"lr": [1e-4, 0.1 + 0.2], "nested": {"3": None, "x": -0.0, "é": "\n"}}
    assert found.model_copy(update={"signature": "", "knobs": {}}) == meant.model_copy(update={"knobs": {}})
    assert read_manifest(root, None) == found


def test_commit_of_what_is_not_in_the_folder_is_refused(tmp_path: Path, key: SigningKey) -> None:
    root = tmp_path / name_of(5)
    with ShardFile(root, "state/a.pt", rank=0) as file:
        file.write(b"abc")
    missing = Shard(path="state/b.pt", rank=0, size_bytes=1, sha256="a" * 64)
    with pytest.raises(Damaged, match=r"has no state/b.pt"):
        commit(root, manifest(5, (file.shard, missing)), key)
    with pytest.raises(Damaged, match="has 3 bytes, but 4 were saved"):
        commit(root, manifest(5, (file.shard.model_copy(update={"size_bytes": 4}),)), key)
    (root / "state/b.pt").write_bytes(b"x")
    with pytest.raises(Damaged, match="does not list"):
        commit(root, manifest(5, (file.shard,)), key)
    assert not (root / MANIFEST).exists()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"checkpoint": "another"}, "is of checkpoint 'another'"),
        ({"knobs": {"lr": float("nan")}}, "cannot be written as JSON"),
        ({"knobs": {"lr": object()}}, "cannot be written as JSON"),
        ({"world_size": 0}, "says that rank 0 of 0"),
        ({"shards": ()}, "names no shards"),
    ],
)
def test_commit_of_an_impossible_manifest_is_refused(
    tmp_path: Path, key: SigningKey, told: dict[str, Any], reason: str
) -> None:
    root = tmp_path / name_of(5)
    with ShardFile(root, "state/a.pt", rank=0) as file:
        file.write(b"abc")
    with pytest.raises(SteerwayError, match=reason):
        commit(root, manifest(5, (file.shard,)).model_copy(update=told), key)
    assert not (root / MANIFEST).exists()


def test_manifest_with_a_metric_that_is_not_finite_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="metrics of a checkpoint must be finite"):
        manifest(1, (), metrics={"eval_loss": float("inf"), "accuracy": 1})


def test_manifest_of_another_format_is_refused_by_number(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path, 1, key)
    text = (root / MANIFEST).read_text()
    (root / MANIFEST).write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(Damaged, match="has format 1; this release reads format 2"):
        read_manifest(root, key)


def test_manifest_longer_than_the_limit_is_not_read(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = save(tmp_path, 1, key)
    with (root / MANIFEST).open("ab") as file:
        file.truncate(manifests.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(Damaged, match="longer than"):
        read_manifest(root, key)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_manifest_that_is_no_file_is_refused_without_waiting(tmp_path: Path, key: SigningKey, kind: str) -> None:
    root = save(tmp_path / "c", 1, key)
    (root / MANIFEST).rename(tmp_path / "aside")
    make = {"link": lambda p: p.symlink_to(tmp_path / "aside"), "pipe": os.mkfifo, "folder": lambda p: p.mkdir()}
    make[kind](root / MANIFEST)
    with pytest.raises(Damaged):
        read_manifest(root, key)
    assert list_checkpoints(tmp_path / "c", key) == []


def test_verify_by_ranks_finds_damage_only_in_what_they_wrote(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path, 1, key)
    path = root / "state/optimizer/rank-1.pt"
    path.write_bytes(path.read_bytes()[::-1])
    assert verify(root, key, ranks=[0]).step == 1
    with pytest.raises(Damaged, match=r"rank-1\.pt"):
        verify(root, key, ranks={1})


def test_list_and_examine_tell_good_ones_by_step_and_name_what_is_not_good(tmp_path: Path, key: SigningKey) -> None:
    folder = tmp_path / "checkpoints"
    assert list_checkpoints(folder, key) == []
    for step in (20, 3):
        save(folder, step, key)
    save(folder, 100, SigningKey.of_installation(tmp_path / "foreign"))
    (folder / "unfinished" / "state").mkdir(parents=True)
    (folder / "a-file").write_text("x")
    assert [m.step for m in list_checkpoints(folder, key)] == [3, 20]
    problems = {one.name: one.reason for one in examine(folder, key) if one.reason}
    assert set(problems) == {"unfinished", name_of(100)}
    assert "signed by another installation" in problems[name_of(100)]
    assert "--trust" in problems[name_of(100)]
    assert [m.step for m in list_checkpoints(folder, None)] == [3, 20, 100]


def test_unsigned_and_changed_manifests_are_told_apart(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path, 1, key)
    good = read_manifest(root, key)
    for update, told in (
        ({"signature": ""}, "is not signed"),
        ({"step": 2}, "was changed after it was signed"),
        ({"signature": "f" * 16 + good.signature[16:]}, "another installation"),
        ({"signature": "nonsense"}, "was changed"),
    ):
        (root / MANIFEST).write_bytes(good.model_copy(update=update).text())
        with pytest.raises(Damaged, match=told) as refused:
            verify(root, key)
        assert "--trust" in refused.value.reason


def test_discard_takes_the_manifest_first_and_leftovers_finds_only_what_is_old(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "c", 1, key)
    (root / MANIFEST).unlink()
    assert leftovers(tmp_path / "c", older_than_s=3600) == [], "a save that is going on"
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    assert leftovers(tmp_path / "c", older_than_s=3600) == [root]
    discard(root.parent, root.name)
    discard(root.parent, root.name)
    assert list((tmp_path / "c").iterdir()) == []


def test_discard_of_a_link_leaves_what_it_points_to(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "elsewhere", 1, key)
    (tmp_path / "c").mkdir()
    link = tmp_path / "c" / root.name
    link.symlink_to(root)
    discard(link.parent, link.name)
    assert not link.is_symlink()
    assert verify(root, key).step == 1


def test_room_is_refused_where_too_little_would_be_left(tmp_path: Path) -> None:
    assert space_shortage(tmp_path / "not" / "yet", 1) is None
    assert "must leave" in str(space_shortage(tmp_path / "not" / "yet", 2**62))


def test_key_is_made_once_private_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    key = SigningKey.of_installation(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert repr(SigningKey.of_installation(path)) == repr(key)
    assert path.read_text().strip() not in f"{key!r} {key}"
    assert [file.name for file in path.parent.iterdir()] == ["key"]
    assert repr(SigningKey.of_installation(tmp_path / "other")) != repr(key)


def _make(path: Path, told: Any) -> None:
    told.put(repr(SigningKey.of_installation(path)))


def test_key_made_by_racing_processes_is_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(5):
        told = context.SimpleQueue()
        racing = [context.Process(target=_make, args=(tmp_path / str(number) / "key", told)) for _ in range(6)]
        for process in racing:
            process.start()
        for process in racing:
            process.join()
        assert len({told.get() for _ in racing}) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o660])
def test_key_that_others_have_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    SigningKey.of_installation(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(SteerwayError, match="chmod 600"):
        SigningKey.of_installation(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "a" * 63, "a" * 64 + "\n\n", "a" * 65, "A" * 64])
def test_key_file_that_is_not_a_key_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(Damaged, match="is not a signing key"):
        SigningKey.of_installation(path)
    assert path.read_text() == text


def test_key_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    SigningKey.of_installation(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe"):
        with pytest.raises(Damaged):
            SigningKey.of_installation(tmp_path / name)


def test_signature_does_not_depend_on_which_fields_were_named(key: SigningKey) -> None:
    """A field with its default says the same whether it is written down or not."""
    short = Manifest(checkpoint="c", run="r", generation=1, step=1, world_size=1, shards=(), samples_consumed=1)
    long = Manifest.model_validate(short.model_dump())
    assert key.sign(short) == key.sign(long)
    key.check(key.sign(short), Path("c"))


def test_contents_of_two_steps_differ() -> None:
    """Guards the tests that swap and restore them."""
    assert contents(1) != contents(2)


def test_another_checkpoint_of_the_same_name_is_not_the_one_that_was_recorded(tmp_path: Path, key: SigningKey) -> None:
    root = save(tmp_path / "c", 5, key)
    recorded = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    assert verify(root, key, recorded_sha256=recorded).step == 5
    older = verify(root, key).model_copy(update={"saved_at": "2020-01-01T00:00:00+00:00"})
    commit(root, older, key)
    assert verify(root, key).saved_at == older.saved_at, "by itself it is as good as the other one"
    for read in (lambda: verify(root, key, recorded_sha256=recorded), lambda: read_manifest(root, key, recorded)):
        with pytest.raises(Damaged, match=f"checkpoint {root.name} differs from the one recorded in the journal"):
            read()


def test_checkpoint_that_was_trusted_is_still_the_one_that_was_recorded(tmp_path: Path, key: SigningKey) -> None:
    theirs = SigningKey(b"t" * 32)
    root = save(tmp_path / "c", 5, theirs)
    recorded = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(Damaged, match="another installation"):
        verify(root, key, recorded_sha256=recorded)
    for _ in range(2):  # and whoever trusts it twice loses nothing
        assert resign(root, key) == hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
        assert verify(root, key, recorded_sha256=recorded).step == 5
    with pytest.raises(Damaged, match="differs from the one recorded in the journal"):
        verify(root, key, recorded_sha256="0" * 64)
