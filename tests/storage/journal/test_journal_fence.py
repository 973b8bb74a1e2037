"""Two writers at once: the older one confirms nothing, and what it still writes is not seen."""

import threading
from pathlib import Path

import pytest

from control_plane.core.model.errors import Fenced
from control_plane.storage.journal.writer import Disk, Journal, read
from tests.storage.facts import NOW, accepted, numbers


def test_append_by_an_older_writer_is_fenced_for_ever_and_not_read(tmp_path: Path) -> None:
    older = Journal.open(tmp_path)
    older.append([accepted(1)], NOW)
    newer = Journal.open(tmp_path)
    for number in (2, 3):
        with pytest.raises(Fenced):
            older.append([accepted(number)], NOW)
    newer.append([accepted(4)], NOW)
    assert numbers(read(tmp_path)) == [1, 4]
    assert numbers(list(Journal.open(tmp_path).entries)) == [1, 4]


def test_bytes_of_a_fenced_writer_are_ignored_whatever_they_are(tmp_path: Path) -> None:
    older = Journal.open(tmp_path)
    older.append([accepted(1)], NOW)
    newer = Journal.open(tmp_path)
    with (tmp_path / "000001.jsonl").open("ab") as file:
        file.write(b'{"seq":2}\n\0\0garbage\n')
    newer.append([accepted(2)], NOW)
    assert numbers(read(tmp_path)) == [1, 2]


def test_append_confirmed_just_before_a_takeover_is_in_the_newer_history(tmp_path: Path) -> None:
    older = Journal.open(tmp_path)

    def create_after_the_older_wrote(path: Path) -> int:
        older.append([accepted(1)], NOW)
        return Disk().create(path)

    newer = Journal.open(tmp_path, Disk(create=create_after_the_older_wrote))
    assert numbers(list(newer.entries)) == [1]


def test_append_on_its_way_while_the_newer_writer_reads_is_fenced(tmp_path: Path) -> None:
    older, outcomes = Journal.open(tmp_path), []

    def write_header_after_the_older_wrote(descriptor: int, data: bytes) -> int:
        with pytest.raises(Fenced) as caught:
            older.append([accepted(1)], NOW)
        outcomes.append(caught.value)
        return Disk().write(descriptor, data)

    Journal.open(tmp_path, Disk(write=write_header_after_the_older_wrote))
    assert len(outcomes) == 1
    assert read(tmp_path) == []


def test_open_overtaken_before_its_header_is_fenced_and_void(tmp_path: Path) -> None:
    Journal.open(tmp_path).append([accepted(1)], NOW)
    newest: list[Journal] = []

    def write_header_late(descriptor: int, data: bytes) -> int:
        newest.append(Journal.open(tmp_path))
        newest[0].append([accepted(2)], NOW)
        return Disk().write(descriptor, data)

    with pytest.raises(Fenced):
        Journal.open(tmp_path, Disk(write=write_header_late))
    newest[0].append([accepted(3)], NOW)
    assert numbers(read(tmp_path)) == [1, 2, 3]


def test_open_when_another_took_the_number_takes_the_next(tmp_path: Path) -> None:
    raced: list[Journal] = []

    def create_second(path: Path) -> int:
        if not raced:
            raced.append(Journal.open(tmp_path))
        return Disk().create(path)

    journal = Journal.open(tmp_path, Disk(create=create_second))
    assert (raced[0].term, journal.term) == (1, 2)


def test_open_by_many_threads_at_once_loses_no_confirmed_record(tmp_path: Path) -> None:
    confirmed: list[int] = []

    def write_for_some_terms(writer: int) -> None:
        for term in range(8):
            try:
                journal = Journal.open(tmp_path)
                for n in range(6):
                    number = writer * 10_000 + term * 100 + n
                    journal.append([accepted(number)], NOW)
                    confirmed.append(number)
            except Fenced:
                continue

    threads = [threading.Thread(target=write_for_some_terms, args=(writer,)) for writer in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = numbers(read(tmp_path))
    assert len(found) == len(set(found))
    assert set(confirmed) <= set(found)
    assert confirmed, "somebody got through"
