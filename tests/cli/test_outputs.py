"""`steer outputs`: found by a part of the run's id, listed, copied, without a gateway."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.cli.launching.run import outputs_line
from control_plane.cli.main import app
from control_plane.storage.layout import RunFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    for name in ("gpt2-1", "gpt2-2"):
        files = RunFiles(tmp_path / "runs" / name)
        files.work.mkdir(parents=True)
        files.config.write_text("")
    (files.work / "model").mkdir()
    (files.work / "model" / "weights.bin").write_bytes(b"x" * 1500)
    return files


def test_outputs_are_listed_and_copied(files: RunFiles, tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["outputs", "2"])
    assert (listed.exit_code, "1,500  model/weights.bin" in listed.stdout) == (0, True)
    assert f"1 file, 1,500 bytes, in {files.work}" in listed.stdout
    told = json.loads(CliRunner().invoke(app, ["outputs", "gpt2-2", "--json"]).stdout)
    assert told["files"] == [{"path": "model/weights.bin", "bytes": 1500}]

    to = tmp_path / "to"
    assert CliRunner().invoke(app, ["outputs", "gpt2-2", "--copy", str(to)]).exit_code == 0
    assert (to / "model" / "weights.bin").stat().st_size == 1500
    assert CliRunner().invoke(app, ["outputs", "gpt2-2", "--copy", str(to)]).exit_code == 5


def test_outputs_of_no_run_or_of_several_are_refused(files: RunFiles) -> None:
    for given in ("gpt2", "other"):
        assert CliRunner().invoke(app, ["outputs", given]).exit_code == 3


def test_last_line_of_a_run_says_where_they_lie(files: RunFiles) -> None:
    assert outputs_line(files) == f"outputs: {files.work} (1 file; copy with `steer outputs gpt2-2 --copy TO`)"
