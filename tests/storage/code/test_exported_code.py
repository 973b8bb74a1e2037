"""An export of a run holds the hash of its code, and no code."""

import zipfile
from hashlib import sha256
from pathlib import Path

from control_plane.storage.journal.export import export, import_run, read_export
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.core.examples import created, started
from tests.storage.scenario import FAST, NOW


def test_code_stays_behind_and_the_config_names_its_hash(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "there" / "runs" / "run-1")
    config = f"name: run-1\nworkload: {{kind: script, path: train.py}}\nbundle: {sha256(b'a zip').hexdigest()}\n"
    journal = Journal.open(files.journal, FAST)
    journal.append([created(config_sha256=sha256(config.encode()).hexdigest()), started()], NOW)
    journal.close()
    files.config.write_text(config)
    files.bundle.write_bytes(b"a zip")
    files.code.mkdir()
    (files.code / "train.py").write_text("print()")
    exported = tmp_path / "run-1.zip"
    export(files, exported)
    with zipfile.ZipFile(exported) as archive:
        assert sorted(archive.namelist()) == ["config.yaml", "journal/000001.jsonl", "manifest.json"]
    imported = import_run(read_export(exported), tmp_path / "here" / "runs")
    assert imported.config.read_text() == config
    assert not imported.bundle.exists()
    assert not imported.code.exists()
