"""What an installation keeps is its owner's: others may not write to its home, nor reach a file of a run."""

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from cluster.record import make_home
from control_plane.api.messages import Point
from control_plane.config import settings
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import Parent, RunCreated
from control_plane.core.rules.branch_rules import Origin
from control_plane.storage.checkpoint import transfer
from control_plane.storage.checkpoint.store import SigningKey
from control_plane.storage.checkpoint.transfer import transfer_checkpoint, write_origin
from control_plane.storage.digest_files import RankDigest, digest_file
from control_plane.storage.journal.export import export, import_run, read_export
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.checkpoint import save as checkpoint_io
from ray_jobs.config.run_config import load
from ray_jobs.digest.stream import DigestFile
from ray_jobs.process.work_folder import enter_work_folder
from ray_jobs.submit import prepare
from tests.ray.cluster import REPOSITORY
from tests.storage.checkpoint.kin import lay, record_of
from tests.storage.checkpoint.saved import name_of, save
from tests.storage.facts import NOW

CONFIG = str(REPOSITORY / "configs" / "gpt2-local.yaml")


@pytest.fixture
def shared_umask() -> Iterator[None]:
    """As on machines where everybody has a group of their own: what is made is the group's to write."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Everything below of which the mode lets anybody else do anything."""
    found = [path for path in folder.rglob("*") if not path.is_symlink() and path.lstat().st_mode & 0o077]
    return [f"{path.relative_to(folder)} {stat.S_IMODE(path.lstat().st_mode):04o}" for path in found]


def written_by_a_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """All that is written below a run's folder, by who writes it."""
    config = load(CONFIG)
    files = prepare(config, home / "runs", "mine")
    journal = Journal.open(files.journal)
    digest = sha256(config.to_yaml().encode()).hexdigest()
    journal.append([RunCreated(run="mine", name="mine", author="ann", config_sha256=digest)], NOW)
    journal.close()
    store = MetricsStore(files.metrics)
    store.add([Point(step=1, name="loss", value=2.0, time_s=1.0)])
    checkpoint_io._new_folder(files, name_of(1))
    save(files.checkpoints, 2, SigningKey.of_installation(files.signing_key))
    stream = DigestFile(digest_file(files, 1, 0))
    stream.put(RankDigest(1, {"weights/a": "0" * 32}))
    stream.close()
    write_origin(files, Origin(parent=Parent(kind="replay", run="other", step=1)))
    monkeypatch.chdir(home)
    enter_work_folder(files)
    store.close()
    return files


def test_no_file_of_a_run_is_anybody_elses_whatever_the_umask(
    tmp_path: Path, shared_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    make_home(settings(home=home))
    files = written_by_a_run(home, monkeypatch)
    assert {"config.yaml", "journal", "metrics.sqlite", "checkpoints", "digests", "work", "logs", "origin.json"} <= {
        path.name for path in files.root.iterdir()
    }
    export(files, tmp_path / "mine.zip")
    import_run(read_export(tmp_path / "mine.zip"), home / "runs", "imported")
    assert (tmp_path / "mine.zip").stat().st_mode & 0o077 == 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert open_to_others(home) == []


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "copied"])
def test_checkpoint_that_a_fork_is_given_is_its_owners_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    parent = lay(tmp_path / "home", "parent", 1)
    before = os.umask(0o002)
    try:
        if not linked:
            monkeypatch.setattr(transfer.os, "link", refuse_to_link)
        child = RunFiles(tmp_path / "home" / "runs" / "child")
        transfer_checkpoint(parent, record_of(parent, name_of(1)), child)
    finally:
        os.umask(before)
    assert open_to_others(child.root) == []


def refuse_to_link(source: object, target: object) -> None:
    raise OSError("these are two file systems")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o1777, 0o722])
@pytest.mark.parametrize("which", [".", "runs"])
def test_home_that_others_may_write_to_is_refused_with_what_to_do(tmp_path: Path, which: str, mode: int) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    SigningKey.of_installation(home / "checkpoint-key")
    (home / which).chmod(mode)
    for use in (lambda: make_home(settings(home=home)), lambda: SigningKey.of_installation(home / "checkpoint-key")):
        with pytest.raises(SteerwayError, match=r"other users may write to .*chmod go-w"):
            use()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a folder away")
@pytest.mark.parametrize("which", [".", "runs"])
def test_home_of_another_user_is_refused(tmp_path: Path, which: str) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    os.chown(home / which, 12345, 12345)
    for use in (lambda: make_home(settings(home=home)), lambda: SigningKey.of_installation(home / "checkpoint-key")):
        with pytest.raises(SteerwayError, match=r"belongs to another user \(uid 12345"):
            use()
    assert not (home / "checkpoint-key").exists()


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_home_that_others_may_only_read_is_taken(tmp_path: Path, mode: int) -> None:
    """As a container's /root is, or a home that earlier builds have made."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(mode)
    make_home(settings(home=tmp_path / "home"))
    assert SigningKey.of_installation(tmp_path / "home" / "checkpoint-key").name
