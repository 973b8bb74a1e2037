"""Every damage of one kind there is, in a journal of three terms: slow, and with nothing left out."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from control_plane.storage.journal.audit import audit
from tests.storage.journal.damages import (
    Place,
    audited,
    copies,
    cuts,
    deletions,
    files_of,
    files_with,
    flips,
    lines_of,
    swaps,
)
from tests.storage.scenario import write_three_terms

pytestmark = pytest.mark.slow


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    write_three_terms(tmp_path / "journal")
    return tmp_path / "journal"


@pytest.mark.parametrize("name", ["000001.jsonl", "000002.jsonl", "000003.jsonl"])
def test_every_bit_flipped_is_named_with_its_line(journal: Path, name: str) -> None:
    files = files_of(journal)
    for offset, flipped in flips(files, name, bits=8):
        first = audited(journal, flipped).findings[0]
        line = files[name][:offset].count(b"\n") + 1
        assert (first.what, first.file, first.line) == ("changed bytes", name, line), offset


@pytest.mark.parametrize("name", ["000001.jsonl", "000002.jsonl"])
def test_older_segments_cut_anywhere_are_truncated(journal: Path, name: str) -> None:
    files = files_of(journal)
    for size_bytes, cut in cuts(files, name):
        (found,) = audited(journal, cut).findings
        assert (found.what, found.file, found.offset) == ("truncated", name, size_bytes)


def test_newest_segment_cut_anywhere_is_a_torn_tail(journal: Path) -> None:
    files, noted = files_of(journal), audit(journal).head
    name = max(files)
    for size_bytes, cut in cuts(files, name):
        assert audited(journal, cut).verdict == ("intact" if cut[name].endswith(b"\n") else "torn tail"), size_bytes
        assert [one.what for one in audited(journal, cut, noted).findings] == ["not as noted"]


def test_lines_exchanged_taken_out_and_doubled_are_each_named(journal: Path) -> None:
    files = files_of(journal)
    last = list(lines_of(files))[-1]
    for one, other, swapped in swaps(files):
        assert {found.what for found in audited(journal, swapped).findings} == {"reordered"}, (one, other)
    for place, without in deletions(files):
        whats = [found.what for found in audited(journal, without).findings]
        assert whats in ([["missing lines"], ["truncated"]] if place != last else [[]]), place
    for copied, behind, doubled in copies(files):
        found = audited(journal, doubled)
        assert [one.what for one in found.findings] == ["duplicated"] or len(found.notes) == 1, (copied, behind)


def test_two_lines_damaged_at_once_are_both_named(journal: Path) -> None:
    files = files_of(journal)
    lines = lines_of(files)
    kinds = Counter[str]()
    for pair in combinations(lines, 2):
        broken = {place: lines[place][:30] + b"##" + lines[place][32:] for place in pair}
        found = audited(journal, files_with(files, lines | broken)).findings
        assert {Place(one.file or "", one.line or 0) for one in found} == set(pair)
        kinds.update(one.what for one in found)
    assert set(kinds) == {"changed bytes"}
