"""RUN/work: a script finds what lies beside it, and what it writes stays with its run."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.core.model.errors import Conflict, NotFound
from control_plane.storage.layout import RunFiles
from control_plane.storage.outputs import copy_outputs, outputs
from ray_jobs import train
from ray_jobs.config.run_config import ScriptWorkload
from ray_jobs.process import work_folder
from ray_jobs.process.context import Trainings
from ray_jobs.process.work_folder import enter_work_folder, overwritten_files


@pytest.fixture(autouse=True)
def back() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A user's folder with a script, a file of data and a folder of it."""
    folder = tmp_path / "thesis"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data.txt").write_text("words")
    (folder / "data" / "deep" / "train.txt").write_text("more words")
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / "train.py").write_text(
        "from pathlib import Path\n"
        "read = open('data.txt').read() + open('data/deep/train.txt').read()\n"
        "Path('my-model').mkdir(exist_ok=True)\n"
        "Path('my-model/model.txt').write_text(read)\n"
        "Path('data/deep/seen.txt').write_text('1')\n"
    )
    return folder


def run_files(tmp_path: Path, run: str) -> RunFiles:
    files = RunFiles(tmp_path / "home" / "runs" / run)
    files.root.mkdir(parents=True)
    return files


def run_script(files: RunFiles, script: Path) -> None:
    enter_work_folder(files, script)
    train.run_script(ScriptWorkload(kind="script", path=str(script), args=[]), Trainings())


def test_three_forks_write_three_models_and_leave_the_scripts_folder_alone(tmp_path: Path, beside: Path) -> None:
    before = sorted(path for path in beside.rglob("*"))
    for name in ("a", "b", "c"):
        files = run_files(tmp_path, name)
        for _start in range(2):  # and again after a loss
            run_script(files, beside / "train.py")
        assert [str(each.path) for each in outputs(files)] == ["data/deep/seen.txt", "my-model/model.txt"]
        assert (files.work / "my-model" / "model.txt").read_text() == "wordsmore words"
        assert (files.work / ".git").is_symlink()
    assert sorted(path for path in beside.rglob("*")) == before


def test_runs_that_lie_beside_the_script_are_not_linked_into_themselves(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    files = run_files(tmp_path, "a")
    enter_work_folder(files, tmp_path / "train.py")
    assert sorted(path.name for path in files.work.iterdir()) == ["train.py"]


def test_two_ranks_at_once_and_what_the_script_put_there_is_kept(tmp_path: Path, beside: Path) -> None:
    files = run_files(tmp_path, "a")
    files.work.mkdir()
    (files.work / "data").write_text("a file of the script's own")
    for _rank in range(2):
        enter_work_folder(files, beside / "train.py")
    assert (files.work / "data").read_text() == "a file of the script's own"


def test_folder_of_too_many_files_is_linked_as_a_whole_and_named(
    tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work_folder, "MAX_LINKS", 5)
    for number in range(10):
        (beside / "data" / f"{number}.bin").write_text("")
    files = run_files(tmp_path, "a")
    with caplog.at_level(logging.WARNING):
        enter_work_folder(files, beside / "train.py")
    assert (files.work / "data" / "deep").is_symlink()
    assert (files.work / "data" / "deep" / "train.txt").read_text() == "more words"
    assert str(beside / "data" / "deep") in caplog.text


def test_file_that_a_script_writes_over_is_named(tmp_path: Path, beside: Path) -> None:
    files = run_files(tmp_path, "a")
    enter_work_folder(files, beside / "train.py")
    os.utime(beside / "data" / "deep" / "train.txt", (1, 1))
    since = time.time() - 1
    (files.work / "data.txt").write_text("other words")
    assert Path("data.txt") in overwritten_files(files.work, since)
    assert Path("data/deep/train.txt") not in overwritten_files(files.work, since)


def test_outputs_are_copied_whole_or_not_at_all_and_no_link_is_followed(tmp_path: Path, beside: Path) -> None:
    files = run_files(tmp_path, "a")
    with pytest.raises(NotFound, match="has no output files"):
        copy_outputs(files, tmp_path / "to")
    run_script(files, beside / "train.py")
    (files.work / "stolen").symlink_to("/etc/passwd")
    (files.work / "folder").symlink_to("/etc")
    copied = copy_outputs(files, tmp_path / "to")
    assert len(copied) == 2
    assert sorted(str(p.relative_to(tmp_path / "to")) for p in (tmp_path / "to").rglob("*") if p.is_file()) == [
        "data/deep/seen.txt",
        "my-model/model.txt",
    ]
    with pytest.raises(Conflict, match="already exists"):
        copy_outputs(files, tmp_path / "to")
