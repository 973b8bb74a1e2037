"""Journals that earlier releases wrote still open, fold to what they meant then, and go on.

`journals/v0.1` was written by the code of that release: two terms, every record and every kind of command it had.
"""

import shutil
from pathlib import Path
from uuid import UUID

from control_plane.core.records import TermStarted
from control_plane.core.recovery import replay_after, resume_point
from control_plane.core.state import fold
from control_plane.storage.journal import Journal, read

V0_1 = Path(__file__).parent / "journals" / "v0.1"


def test_journal_of_the_first_release_folds_to_what_it_meant() -> None:
    state = fold(read(V0_1))
    statuses = [life.status for life in state.commands.values()]
    applied = ["applied"] * 4
    assert statuses == [*applied, "rejected", "applied", "failed", "expired", "applied"]
    assert (state.status, state.step, state.reached_step) == ("stopped", 30, 30)
    assert (state.term, state.generation_number, state.pending) == (2, 2, {})
    assert state.knobs == {"lr": [1e-3, 5e-4], "groups": ["decay", "no_decay"]}
    assert [(each.checkpoint, each.world_size, each.metrics) for each in state.checkpoints] == [("c1", 0, {})]
    assert (state.losses, state.resumed_seq) == ([], 0)


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
