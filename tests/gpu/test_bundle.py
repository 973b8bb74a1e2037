"""What is laid down for a machine without network is whole: its own modules are imported, from there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import bundle
from control_plane.core.model.errors import Invalid, SteerwayError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def wheels(folder: Path) -> list[str]:
        folder.mkdir()
        (folder / "deepspeed-0-py3-none-any.whl").write_bytes(b"0" * 1000)
        return ["deepspeed"]

    monkeypatch.setattr(bundle, "_wheels", wheels)


@pytest.mark.usefixtures("no_network")
def test_bundle_is_imported_from_where_it_lies_and_says_how_it_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    said = bundle.import_run(folder)
    assert said.endswith("--find-links wheels deepspeed && python3 -m benchmarks.gpu")
    assert "python3 -m benchmarks.gpu" in (folder / "README.txt").read_text()
    assert {path.name for path in folder.iterdir()} == {*bundle.SOURCES, "wheels", "README.txt"}
    assert not list(folder.rglob("__pycache__"))
    code = (
        "import benchmarks.gpu.__main__ as a, control_plane as b, ray_jobs.config.run_config as c; "
        "from benchmarks.gpu import requirements as d; assert d.pins(); "
        "print(*(each.__file__ for each in (a, b, c, d)), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [path for path in run.stdout.split() if not Path(path).is_relative_to(folder)] == []


@pytest.mark.usefixtures("no_network")
def test_bundle_overwrites_nothing_and_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "something").write_text("mine")
    with pytest.raises(Invalid, match="is not empty"):
        bundle.import_run(tmp_path)
    monkeypatch.setattr(bundle, "LIMIT_BYTES", 1000)
    with pytest.raises(SteerwayError, match="limit"):
        bundle.import_run(tmp_path / "bundle")
