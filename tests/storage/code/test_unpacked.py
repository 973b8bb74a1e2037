"""A run's code: from the upload, from its parent, and again from its own folder before it is resumed."""

import os
import shutil
from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged, Invalid, NotFound, Refused
from control_plane.storage import failpoints
from control_plane.storage.code import unpacked
from control_plane.storage.code.unpacked import inherit_code, restore_code, unpack_bundle
from control_plane.storage.code.uploads import bundle_path
from control_plane.storage.layout import RunFiles
from tests.storage.code.bundles import killed_at, sha256_of, zip_of

DATA = zip_of(("train.py", b"print()"), ("data/a.csv", b"1,2"))
SHA256 = sha256_of(DATA)


def stored(home: Path, data: bytes, sha256: str | None = None) -> str:
    """Put a bundle where uploads are."""
    path = bundle_path(home, sha256 or sha256_of(data))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return sha256 or sha256_of(data)


def run_of(home: Path, name: str = "run-1") -> RunFiles:
    """The folder of a new run."""
    files = RunFiles(home / "runs" / name)
    files.root.mkdir(parents=True)
    return files


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """A run with code."""
    files = run_of(tmp_path)
    unpack_bundle(tmp_path, stored(tmp_path, DATA), files)
    return files


def test_a_run_gets_the_bundle_and_its_files(tmp_path: Path, files: RunFiles) -> None:
    assert files.bundle.read_bytes() == DATA
    assert files.bundle.stat().st_mode & 0o777 == 0o600
    assert (files.code / "data" / "a.csv").read_text() == "1,2"
    assert sorted(path.name for path in files.root.iterdir()) == ["code", "code.zip"]
    bundle_path(tmp_path, SHA256).unlink()  # by age
    assert restore_code(files, SHA256, tmp_path) is None


def test_where_there_are_no_hard_links_the_bundle_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    files = run_of(tmp_path)
    unpack_bundle(tmp_path, stored(tmp_path, DATA), files)
    assert files.bundle.read_bytes() == DATA
    assert files.bundle.stat().st_mode & 0o777 == 0o600
    assert files.bundle.stat().st_nlink == 1


def test_a_bundle_that_is_missing_changed_or_hostile_leaves_the_run_without_code(tmp_path: Path) -> None:
    files = run_of(tmp_path)
    with pytest.raises(NotFound, match="was not uploaded, or was removed unused; submit again"):
        unpack_bundle(tmp_path, "a" * 64, files)
    with pytest.raises(Damaged, match="has changed"):
        unpack_bundle(tmp_path, stored(tmp_path, DATA, "b" * 64), files)
    with pytest.raises(Invalid, match="leaves its folder"):
        unpack_bundle(tmp_path, stored(tmp_path, zip_of(("../../evil", b"x"))), files)
    assert list(files.root.iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "runs" / "evil").exists()


@pytest.mark.parametrize("point", [point for point in failpoints.POINTS if point.startswith("bundle.kept.")])
def test_killed_while_a_run_gets_its_code(tmp_path: Path, point: str) -> None:
    stored(tmp_path, DATA)
    assert killed_at(point, lambda: unpack_bundle(tmp_path, SHA256, run_of(tmp_path)))
    files = RunFiles(tmp_path / "runs" / "run-1")
    assert (files.code / "train.py").read_text() == "print()"
    assert not files.bundle.exists() or files.bundle.read_bytes() == DATA
    unpack_bundle(tmp_path, SHA256, files)
    assert files.bundle.read_bytes() == DATA


def test_a_fork_has_the_code_of_its_parent(tmp_path: Path, files: RunFiles) -> None:
    fork = run_of(tmp_path, "fork-1")
    inherit_code(files, SHA256, fork)
    shutil.rmtree(files.root)
    assert fork.bundle.read_bytes() == DATA
    assert (fork.code / "train.py").read_text() == "print()"


def test_code_is_unpacked_again_where_it_is_missing(tmp_path: Path, files: RunFiles) -> None:
    shutil.rmtree(files.code)
    assert restore_code(files, SHA256, tmp_path) is None
    assert (files.code / "train.py").read_text() == "print()"


def test_changed_code_is_kept_aside_and_replaced(tmp_path: Path, files: RunFiles) -> None:
    (files.code / "result.txt").write_text("of the script")
    assert restore_code(files, SHA256, tmp_path) is None, "what the script wrote beside its code stays"
    (files.code / "train.py").write_text("evil()")
    aside = restore_code(files, SHA256, tmp_path)
    assert aside is not None
    assert (aside / "train.py").read_text() == "evil()"
    assert (aside / "result.txt").read_text() == "of the script"
    assert (files.code / "train.py").read_text() == "print()"


def test_code_that_is_a_link_is_not_followed(tmp_path: Path, files: RunFiles) -> None:
    shutil.rmtree(files.code)
    (tmp_path / "elsewhere").mkdir()
    files.code.symlink_to(tmp_path / "elsewhere")
    restore_code(files, SHA256, tmp_path)
    assert not files.code.is_symlink()
    assert (files.code / "train.py").read_text() == "print()"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_swapped_bundle_is_refused_before_it_is_unpacked(
    tmp_path: Path, files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.bundle.unlink()
    files.bundle.write_bytes(zip_of(("train.py", b"evil()")))
    shutil.rmtree(files.code)
    monkeypatch.setattr(unpacked.archive, "unpack", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(Refused, match="is not the code that run run-1 was submitted with"):
        restore_code(files, SHA256, tmp_path)
    assert not files.code.exists()


def test_a_missing_bundle_is_said(tmp_path: Path, files: RunFiles) -> None:
    files.bundle.unlink()
    bundle_path(tmp_path, SHA256).unlink()
    with pytest.raises(NotFound, match=r"it has no code\.zip \(an export holds none\)"):
        restore_code(files, SHA256, tmp_path)


def test_an_imported_run_takes_the_bundle_that_was_uploaded_again(tmp_path: Path) -> None:
    files = run_of(tmp_path)
    stored(tmp_path, DATA)
    assert restore_code(files, SHA256, tmp_path) is None
    assert files.bundle.read_bytes() == DATA
