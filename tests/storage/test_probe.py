"""Probe of a file system: sound here; an unseen lock, a missing file and a full disk are failures."""

import fcntl
import os
from pathlib import Path

import pytest

from control_plane.core.model.errors import Refused
from control_plane.storage import probe as module
from control_plane.storage.probe import LOCKED, held_probe, probe


def levels(folder: Path) -> dict[str, str]:
    return {finding.what: finding.level for finding in probe(folder)}


def test_this_file_system_passes_and_nothing_is_left(tmp_path: Path) -> None:
    with held_probe(tmp_path) as folder:
        found = levels(folder)
    assert set(found) == {
        "exclusive creation",
        "atomic rename",
        "fsync",
        "locks between processes",
        "free space",
    }
    assert {found[name] for name in ("exclusive creation", "atomic rename", "locks between processes")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_machine_does_not_see_is_a_failure(tmp_path: Path) -> None:
    with held_probe(tmp_path) as folder:
        holder = os.open(folder / LOCKED, os.O_RDWR)
        (folder / LOCKED).unlink()
        (folder / LOCKED).touch()  # as on a mount with local locks: the same name, and nobody holds it
        os.close(holder)
        assert levels(folder)["locks between processes"] == "failed"


def test_a_folder_that_cannot_be_read_fails_every_check_but_no_traceback(tmp_path: Path) -> None:
    found = levels(tmp_path / "gone")
    assert set(found.values()) == {"failed"}


def test_a_disk_without_room_and_a_slow_one_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_BYTES", 1 << 60)
    monkeypatch.setattr(module, "SLOW_FSYNC_S", 0.0)
    with held_probe(tmp_path) as folder:
        found = levels(folder)
    assert (found["free space"], found["fsync"]) == ("failed", "warning")


def test_a_file_created_twice_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_write", lambda path, content, flags=0: 0.0)
    with held_probe(tmp_path) as folder:
        assert levels(folder)["exclusive creation"] == "failed"


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be written"), held_probe(tmp_path / "nowhere"):
        pass


def test_the_lock_is_held_for_as_long_as_the_probe(tmp_path: Path) -> None:
    with held_probe(tmp_path) as folder, (folder / LOCKED).open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
