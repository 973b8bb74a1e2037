"""What was decided to go goes, even if the server that decided it did not live to see it."""

import hashlib
import time
from pathlib import Path

from control_plane.actor.control_actor import ControlActor
from control_plane.core.model.records import CheckpointDiscarded
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import name_of
from tests.storage.facts import NOW

REMOVED_WITHIN_S = 20.0


def lay_with_its_digest(folder: Path) -> RunFiles:
    """A run with two checkpoints, whose journal knows its config."""
    text = "name: run\n"
    return lay(folder, "run", 1, 5, config=text, config_sha256=hashlib.sha256(text.encode()).hexdigest())


def test_checkpoint_whose_removal_a_crash_prevented_is_removed_by_the_next_server(tmp_path: Path) -> None:
    files = lay_with_its_digest(tmp_path)
    journal = Journal.open(files.journal)
    journal.append([CheckpointDiscarded(checkpoint=name_of(1), reason="older than the last 1")], NOW)
    journal.close()
    assert (files.checkpoints / name_of(1)).is_dir()
    server = ControlActor(str(files.root))
    assert server.discarded == {name_of(1)}
    deadline = time.monotonic() + REMOVED_WITHIN_S
    while (files.checkpoints / name_of(1)).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (files.checkpoints / name_of(1)).exists()
    assert (files.checkpoints / name_of(5) / "manifest.json").is_file()
