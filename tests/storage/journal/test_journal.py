"""Writing and reading back, over terms, and what a folder may look like."""

import json
import math
import os
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.core.model.errors import Damaged, Invalid, NotFound, Unavailable
from control_plane.core.model.records import CommandSettled, GenerationStarted
from control_plane.storage.journal.segments import FORMAT_VERSION, MAX_HEADER_BYTES, seal, unseal
from control_plane.storage.journal.writer import MAX_LINE_BYTES, Disk, Journal, read
from tests.storage.facts import NOW, accepted, settled, started

FAST = Disk(fsync=lambda descriptor: None)


def test_append_what_was_written_is_read_back_equal(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    entries = journal.append([started(), accepted(1)], NOW) + journal.append([settled(1)], NOW)
    assert [entry.seq for entry in entries] == [1, 2, 3]
    assert [entry.record for entry in entries] == [started(), accepted(1), settled(1)]
    assert read(tmp_path / "journal") == entries


def test_append_of_nothing_writes_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    before = (tmp_path / "000001.jsonl").read_bytes()
    assert journal.append([], NOW) == []
    assert (tmp_path / "000001.jsonl").read_bytes() == before


def test_append_values_json_cannot_hold_are_spelled_out_alike_in_memory_and_on_disk(tmp_path: Path) -> None:
    reading = {"loss": math.nan, "bounds": [math.inf, -math.inf, -0.0, 5e-324], "deep": {"x": [math.nan]}}
    journal = Journal.open(tmp_path)
    [entry] = journal.append([CommandSettled(uuid=UUID(int=1), status="applied", after=reading)], NOW)
    [found] = read(tmp_path)
    assert found == entry
    assert isinstance(found.record, CommandSettled)
    assert found.record.after == {
        "loss": "NaN",
        "bounds": ["Infinity", "-Infinity", -0.0, 5e-324],
        "deep": {"x": ["NaN"]},
    }
    assert found == type(found).model_validate_json(found.model_dump_json())
    for line in (tmp_path / "000001.jsonl").read_bytes().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_append_floats_come_back_exact(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, 2**53 + 2.0, 1.7976931348623157e308, -0.0, 3e-5]
    journal = Journal.open(tmp_path)
    journal.append([CommandSettled(uuid=UUID(int=1), status="applied", after={"lr": values})], NOW)
    record = read(tmp_path)[0].record
    assert isinstance(record, CommandSettled)
    assert [value.hex() for value in (record.after or {})["lr"]] == [value.hex() for value in values]


@pytest.mark.parametrize("value", [object(), "x" * MAX_LINE_BYTES, {1, 2, 3}.__iter__])
def test_append_a_record_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, value: object) -> None:
    journal = Journal.open(tmp_path)
    journal.append([accepted(1)], NOW)
    before = (tmp_path / "000001.jsonl").read_bytes()
    with pytest.raises(Invalid):
        journal.append([accepted(2), CommandSettled(uuid=UUID(int=1), status="applied", after={"v": value})], NOW)
    assert (tmp_path / "000001.jsonl").read_bytes() == before
    assert [entry.seq for entry in journal.append([accepted(2)], NOW)] == [2]


def test_append_after_close_is_unavailable(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(Unavailable, match="closed"):
        journal.append([accepted(1)], NOW)


def test_open_many_terms_keep_one_history(tmp_path: Path) -> None:
    history = []
    for term in range(1, 41):
        journal = Journal.open(tmp_path, FAST)
        assert journal.term == term
        assert list(journal.entries) == history
        history += journal.append([accepted(number) for number in range(term % 4)], NOW)
        journal.close()
    assert read(tmp_path) == history
    assert [entry.seq for entry in history] == list(range(1, len(history) + 1))


def test_open_a_big_journal_is_read_whole(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, FAST)
    for first in range(0, 5000, 500):
        journal.append([accepted(number) for number in range(first, first + 500)], NOW)
    assert len(Journal.open(tmp_path, FAST).entries) == 5000


def test_open_a_missing_folder_is_made(tmp_path: Path) -> None:
    Journal.open(tmp_path / "a" / "b" / "journal").append([accepted(1)], NOW)
    assert len(read(tmp_path / "a" / "b" / "journal")) == 1


def test_read_a_missing_folder_is_not_found_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_read_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_read_changes_nothing_and_takes_no_term(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append([accepted(1)], NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(journal.append([accepted(2)], NOW)) == 1


def test_open_foreign_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "000001.jsonl~", ".000009.jsonl.swp", "1.jsonl", "x.jsonl"):
        (tmp_path / name).write_text("not ours")
    journal = Journal.open(tmp_path)
    journal.append([accepted(1)], NOW)
    assert journal.term == 1
    assert len(read(tmp_path)) == 1
    assert (tmp_path / "x.jsonl").read_text() == "not ours"


def test_open_a_folder_in_place_of_a_segment_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "000003.jsonl").mkdir()
    with pytest.raises(Unavailable, match="directory"):
        Journal.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["000003.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_open_a_read_only_folder_is_unavailable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Unavailable, match="Permission"):
            Journal.open(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_open_a_file_in_place_of_the_folder_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("")
    with pytest.raises(Unavailable, match="File exists"):
        Journal.open(tmp_path / "journal")


def test_append_to_a_removed_folder_is_unavailable(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    journal.append([accepted(1)], NOW)
    (tmp_path / "journal").rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        journal.append([accepted(2)], NOW)


def test_append_after_the_segment_was_removed_is_unavailable_from_then_on(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    (tmp_path / "000001.jsonl").unlink()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"000001\.jsonl has been removed"):
            journal.append([accepted(1)], NOW)


def test_read_a_format_of_the_future_is_damaged_by_name(tmp_path: Path) -> None:
    pin = {"segment": 0, "size_bytes": 0, "seq": 0}
    header = {"type": "Segment", "version": FORMAT_VERSION + 1, "term": 1, "after": pin, "prev": "0" * 64}
    (tmp_path / "000001.jsonl").write_bytes(seal(header) + b"\n")
    with pytest.raises(Damaged, match=r"in format .*, and this release reads") as caught:
        read(tmp_path)
    assert caught.value.detail == {"file": "000001.jsonl", "line": 1}


def test_header_with_every_field_at_its_largest_fits() -> None:
    pin = {"segment": 999_999, "size_bytes": 10**13, "seq": 10**13}
    header = {"type": "Segment", "version": FORMAT_VERSION, "term": 999_999, "after": pin, "prev": "0" * 64}
    assert len(seal(header)) < MAX_HEADER_BYTES


def test_segment_with_a_header_and_one_record_is_longer_than_any_header(tmp_path: Path) -> None:
    Journal.open(tmp_path).append([started()], NOW)
    assert (tmp_path / "000001.jsonl").stat().st_size > MAX_HEADER_BYTES


def test_unseal_another_spelling_of_the_same_line_is_refused() -> None:
    raw = seal({"seq": 1, "prev": "ab"})
    assert unseal(raw) == {"seq": 1, "prev": "ab"}
    for other in (raw.replace(b":1,", b": 1,"), raw.upper(), raw + b" ", raw[:-1], b"", b"[]"):
        with pytest.raises(ValueError, match="checksum"):
            unseal(other)


def test_append_the_start_of_thousands_of_ranks_fits_in_a_line(tmp_path: Path) -> None:
    ranks = tuple(
        {"rank": rank, "node": f"node-{rank // 8:05d}.cluster.internal", "pid": 4_000_000, "device": "cuda:7"}
        for rank in range(16_384)
    )
    start = GenerationStarted.model_validate(
        {"uuid": UUID(int=1), "generation": 1, "ranks": ranks, "step": 0, "total_steps": 1, "knobs": {}}
    )
    journal = Journal.open(tmp_path, FAST)
    journal.append([start], NOW)
    assert (tmp_path / "000001.jsonl").stat().st_size < MAX_LINE_BYTES / 4
