"""Disk usage and deletion of runs: sizes by kind, decisions that survive a crash, an audit line for each."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.api.launching import Submission
from control_plane.core.model.errors import Conflict
from control_plane.runs import deletion, usage
from control_plane.runs.deletion import Deletions
from control_plane.runs.usage import UNKNOWN_OWNER, UsageMeter, by_owner, bytes_of_owner, measure
from control_plane.storage.in_use import nobody_reads, reading
from control_plane.storage.layout import RunFiles


def made(home: Path, run: str, owner: str | None = "ana", **sizes: int) -> RunFiles:
    """A run's folder with so many bytes below each name."""
    files = RunFiles(home / "runs" / run)
    files.root.mkdir(parents=True)
    files.config.write_text("x")
    if owner is not None:
        record = Submission(uuid=uuid4(), owner=owner, role="operator", submitted_at="2027-01-01T00:00:00")
        files.submission.write_text(record.model_dump_json())
    for name, size in sizes.items():
        folder = files.root / name / "below"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * size)
    return files


def test_bytes_are_counted_by_kind_and_links_are_not_followed(tmp_path: Path) -> None:
    files = made(tmp_path, "a", checkpoints=1000, journal=10, work=5, logs=7, code=3, digests=20)
    (files.root / "metrics.sqlite-wal").write_bytes(b"x" * 50)
    (files.root / "code.zip").write_bytes(b"x" * 30)
    (files.work / "out").symlink_to("/usr")
    usage = measure(files)
    assert (usage.checkpoints, usage.journal, usage.logs, usage.code, usage.metrics) == (1000, 10, 7, 33, 50)
    assert 5 <= usage.work < 100
    assert usage.other == 20 + 1 + files.submission.stat().st_size
    assert usage.total == sum(getattr(usage, kind) for kind in ("checkpoints", "journal", "logs", "code")) + (
        usage.metrics + usage.work + usage.other
    )


def test_usage_is_summed_by_owner_with_the_quota(tmp_path: Path) -> None:
    made(tmp_path, "a", "ana", work=100)
    made(tmp_path, "b", "ana", work=50)
    made(tmp_path, "c", None, work=10_000)
    meter = UsageMeter(tmp_path / "runs")
    runs = meter.read()
    assert [run.run for run in runs] == ["c", "a", "b"]
    owners = by_owner(runs, lambda owner: 99 if owner == "ana" else None)
    assert [(owner.owner, owner.runs, owner.limit) for owner in owners] == [(UNKNOWN_OWNER, 1, None), ("ana", 2, 99)]
    assert owners[1].total == bytes_of_owner(tmp_path / "runs", "ana")
    assert [run.run for run in meter.read(lambda run: run == "b")] == ["b"]


def test_a_size_is_measured_again_when_it_is_stale(tmp_path: Path) -> None:
    files, now = made(tmp_path, "a", work=1), 0.0
    meter = UsageMeter(tmp_path / "runs", lambda: now)
    first = meter.read()[0].total
    (files.work / "more").write_bytes(b"x" * 1000)
    assert meter.read()[0].total == first
    now = usage.FRESH_FOR_S + 1
    assert meter.read()[0].total == first + 1000


def test_a_folder_of_many_files_is_measured_fast(tmp_path: Path) -> None:
    files = made(tmp_path, "a")
    for folder in range(20):
        (files.work / str(folder)).mkdir(parents=True)
        for number in range(500):
            (files.work / str(folder) / str(number)).touch()
    begun = time.process_time()
    measure(files)
    assert time.process_time() - begun < 1.0  # 0.03 s for 10,000 files on an idle core


def test_a_deleted_run_is_gone_and_leaves_a_line(tmp_path: Path) -> None:
    files = made(tmp_path, "a", checkpoints=1000)
    deletions = Deletions(tmp_path)
    decision = deletions.delete(files, "ana", "operator")
    assert not files.root.exists()
    assert (decision.owner, decision.size_bytes > 1000) == ("ana", True)
    assert [done.run for done in deletions.complete()] == ["a"]
    assert list((tmp_path / deletion.FOLDER).iterdir()) == []
    [line] = deletions.audit()
    assert (line["run"], line["by"], line["role"], line["owner"]) == ("a", "ana", "operator", "ana")
    assert deletions.complete() == []


def _delete_completely(home: Path, files: RunFiles) -> None:
    Deletions(home).delete(files, "ana", "operator")
    Deletions(home).complete()


STEPS = ["replace_file", "rename", "remove", "note", "unlink"]


class Crash(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_step_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    """After each crash the run is either there as it was, or goes completely; with one audit line in the end."""
    files = made(tmp_path, "a", work=100)
    at = {
        "replace_file": (deletion, "replace_file"),
        "rename": (deletion.os, "rename"),
        "remove": (deletion, "_remove_tree"),
        "note": (Deletions, "_note"),
        "unlink": (Path, "unlink"),
    }[step]
    real = getattr(*at)

    def crash(*given: object, **named: object) -> None:
        if not before:
            real(*given, **named)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(*at, crash)
        with pytest.raises(Crash):
            _delete_completely(tmp_path, files)
    after = Deletions(tmp_path)
    undecided = step == "replace_file" and before
    assert files.root.exists() is (undecided or (step == "replace_file") or (step == "rename" and before))
    after.complete()
    assert files.root.exists() is undecided
    assert len(after.audit()) == (0 if undecided else 1)
    assert after.decided() == []
    if (tmp_path / deletion.FOLDER).exists():
        assert [path for path in (tmp_path / deletion.FOLDER).iterdir() if not path.name.startswith(".")] == []


def test_a_run_that_was_made_anew_is_not_taken_for_the_deleted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(tmp_path, "a", work=1)
    with monkeypatch.context() as patched:
        patched.setattr(deletion, "_remove_tree", lambda folder: (_ for _ in ()).throw(OSError("busy")))
        Deletions(tmp_path).delete(files, "ana", "operator")
        assert Deletions(tmp_path).complete() == []
    anew = made(tmp_path, "a", work=2)
    assert len(Deletions(tmp_path).complete()) == 1
    assert anew.config.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may remove anything")
def test_folders_without_permissions_are_removed(tmp_path: Path) -> None:
    files = made(tmp_path, "a", work=1)
    (files.work / "below").chmod(0)
    Deletions(tmp_path).delete(files, "ana", "operator")
    assert len(Deletions(tmp_path).complete()) == 1


def test_links_in_a_run_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    files = made(tmp_path, "a", work=1)
    (files.work / "link").symlink_to(outside)
    Deletions(tmp_path).delete(files, "ana", "operator")
    Deletions(tmp_path).complete()
    assert (outside / "precious").read_text() == "stays"


def test_a_run_that_is_read_is_not_deleted_and_one_that_is_deleted_is_not_read(tmp_path: Path) -> None:
    files = made(tmp_path, "a", work=1)
    with reading(files), reading(files), pytest.raises(Conflict, match="is being read by a fork"):
        Deletions(tmp_path).delete(files, "ana", "operator")
    assert files.config.exists()
    with nobody_reads(files), pytest.raises(Conflict, match="is being deleted"), reading(files):
        pass
