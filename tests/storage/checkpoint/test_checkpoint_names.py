"""Names of checkpoints become folders that are removed: a journal that somebody else has written leads nowhere else."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.records import CheckpointCommitted, CheckpointDiscarded, RunCreated
from control_plane.server.archive import ArchivedRun
from control_plane.storage.checkpoint.cleanup import discard, is_ours
from control_plane.storage.journal.segments import seal, unseal
from control_plane.storage.journal.writer import Journal, read
from control_plane.storage.layout import IMPORTED, RunFiles

FOREIGN = ["/tmp/thesis", "../../thesis", "..", ".", "", "a/b", ".hidden", "a\0b", "name\n", "x" * 201]
NOW = "2026-11-28T00:00:00.000Z"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_record_takes_no_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(ValidationError):
        CheckpointDiscarded(checkpoint=name, reason="not kept")
    with pytest.raises(ValidationError):
        CheckpointCommitted(checkpoint=name, step=1, generation=1, path="x")


@pytest.mark.parametrize("name", [name for name in FOREIGN if len(name) < 200])
def test_removal_takes_no_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    folder, thesis = tmp_path / "runs" / "checkpoints", tmp_path / "thesis"
    folder.mkdir(parents=True)
    thesis.mkdir()
    for asked in (name, str(thesis), "../../thesis"):
        with pytest.raises(Invalid, match="is not a valid checkpoint name"):
            discard(folder, asked)
        with pytest.raises(Invalid):
            is_ours(folder, asked)
    assert thesis.is_dir()
    assert folder.is_dir()


def test_what_does_not_look_like_a_checkpoint_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "half" / "state").mkdir(parents=True)
    assert (is_ours(tmp_path, "notes"), is_ours(tmp_path, "half"), is_ours(tmp_path, "none")) == (False, True, False)


def test_a_journal_with_a_foreign_name_is_damaged_when_it_is_read(tmp_path: Path) -> None:
    """Whoever writes a journal by hand can make its checksums right."""
    journal = Journal.open(tmp_path)
    created = RunCreated(run="r", name="r", author="a", config_sha256="0" * 64)
    journal.append([created], NOW)
    journal.append([CheckpointDiscarded(checkpoint="c", reason="not kept")], NOW)
    *_, discarded = read(tmp_path)
    assert isinstance(discarded.record, CheckpointDiscarded)
    (segment,) = tmp_path.glob("*.jsonl")
    *lines, last = segment.read_bytes().splitlines(keepends=True)
    evil = unseal(last.rstrip(b"\n"))
    evil["body"]["checkpoint"] = str(tmp_path / "thesis")
    segment.write_bytes(b"".join(lines) + seal(evil).rstrip(b"\n") + b"\n")
    with pytest.raises(Damaged, match="checkpoint"):
        read(tmp_path)


def test_an_imported_run_is_looked_at_in_its_files_until_it_is_resumed(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "r")
    files.root.mkdir()
    journal = Journal.open(files.journal)
    journal.append([RunCreated(run="r", name="r", author="a", config_sha256="0" * 64)], NOW)
    assert not ArchivedRun(files).only_imported
    (files.root / IMPORTED).write_text(json.dumps({"records": len(read(files.journal))}))
    assert ArchivedRun(files).only_imported
    journal.append([CheckpointDiscarded(checkpoint="c", reason="resumed")], NOW)
    assert not ArchivedRun(files).only_imported
    (files.root / IMPORTED).write_text("{}")
    assert ArchivedRun(files).only_imported
