"""Journals that earlier releases wrote still open, fold to what they meant then, and go on.

`journals/v0.1` was written by the code of that release: two terms, every record and every kind of command it had. It
is of version 1 of the format. `journals/v2` is of version 2: three terms, with every record and command it began with.
"""

import json
import shutil
from pathlib import Path
from uuid import UUID

from control_plane.core.model.records import CommandRepeated, TermStarted
from control_plane.core.model.state import fold
from control_plane.core.rules.recovery import replay_after, resume_point
from control_plane.storage.journal.segments import READABLE_VERSIONS
from control_plane.storage.journal.writer import Journal, read

JOURNALS = Path(__file__).parents[1] / "journals"
V0_1, V2 = JOURNALS / "v0.1", JOURNALS / "v2"


def versions_of(directory: Path) -> set[int]:
    """The versions that the headers of these segments name."""
    return {json.loads(path.read_bytes().splitlines()[0])["version"] for path in directory.iterdir()}


def test_there_is_a_journal_of_every_version_that_is_read() -> None:
    assert versions_of(V0_1) | versions_of(V2) == set(READABLE_VERSIONS)


def test_journal_of_the_second_version_folds_to_what_it_meant() -> None:
    entries = read(V2)
    state = fold(entries)
    statuses = [life.status for life in state.commands.values()]
    assert statuses == ["applied", "rejected", "expired", "applied", *["accepted"] * 12]
    assert (state.status, state.term, state.generation_number, len(state.failures)) == ("stopped", 3, 2, 1)
    assert [each.checkpoint for each in state.checkpoints.existing] == ["step-11-g1"]
    written = [line for path in sorted(V2.iterdir()) for line in map(json.loads, path.read_bytes().splitlines()[1:])]
    for entry, line in zip(entries, written, strict=True):
        known = {key: value for key, value in line.items() if key not in ("batch", "prev", "crc")}
        assert _only(known, entry.line()) == known, "what came later has its default"


def _only(known: object, said: object) -> object:
    """Of what is said now, what was said then."""
    if isinstance(known, dict) and isinstance(said, dict):
        return {key: _only(value, said[key]) for key, value in known.items()}
    if isinstance(known, list) and isinstance(said, list) and len(known) == len(said):
        return [_only(*pair) for pair in zip(known, said, strict=True)]
    return said


def test_journal_of_the_first_version_goes_on_in_the_second(tmp_path: Path) -> None:
    shutil.copytree(V0_1, tmp_path / "journal")
    journal = Journal.open(tmp_path / "journal")
    repeated = CommandRepeated(uuid=UUID(int=4), generation=2, step=13, status="applied")
    (entry,) = journal.append([repeated], "2026-02-01T00:00:00.000Z")
    assert (entry.line()["command"], entry.line()["arguments"]) == ("pause", {})
    assert versions_of(tmp_path / "journal") == {1, 2}
    assert read(tmp_path / "journal")[-1] == entry


def test_journal_of_the_first_release_folds_to_what_it_meant() -> None:
    state = fold(read(V0_1))
    statuses = [life.status for life in state.commands.values()]
    applied = ["applied"] * 4
    assert statuses == [*applied, "rejected", "applied", "failed", "expired", "applied"]
    assert (state.status, state.step, state.reached_step) == ("stopped", 30, 30)
    assert (state.term, state.generation_number, state.pending) == (2, 2, {})
    assert state.knobs == {"lr": [1e-3, 5e-4], "groups": ["decay", "no_decay"]}
    assert [(each.checkpoint, each.world_size, each.metrics) for each in state.checkpoints.existing] == [("c1", 0, {})]
    assert (state.failures, state.resumed_seq) == ([], 0)


def test_journal_of_the_first_release_has_a_history_to_repeat() -> None:
    point = resume_point(fold(read(V0_1)))
    replay = replay_after(point.decided, {str(UUID(int=1)), str(UUID(int=2)), str(UUID(int=3))})
    assert [(each.command.uuid.int, each.step) for each in replay.repeats] == [(4, 13), (6, 13), (9, 30)]
    assert [uuid.int for uuid in replay.ledger] == [1, 2, 3, 5, 7, 8]


def test_journal_of_the_first_release_goes_on_in_the_next_term(tmp_path: Path) -> None:
    shutil.copytree(V0_1, tmp_path / "journal")
    before = read(V0_1)
    journal = Journal.open(tmp_path / "journal")
    assert (journal.term, list(journal.entries)) == (3, before)
    journal.append([TermStarted(term=3, recovered=len(before))], "2026-02-01T00:00:00.000Z")
    assert len(read(tmp_path / "journal")) == len(before) + 1
