"""Disks that fill up, fail and lose power: what was confirmed stays, what was not is never counted."""

import errno
import os
import random
from pathlib import Path

import pytest

from control_plane.core.model.errors import Fenced, Unavailable
from control_plane.storage.journal.writer import Disk, Journal, read
from tests.storage.disks import Crash, FailingDisk, ForgetfulDisk
from tests.storage.facts import NOW, accepted, numbers


def nothing(descriptor: int) -> None:
    """An fsync that takes no time; these tests lose no power."""


def test_append_torn_by_a_crash_at_every_byte_is_not_there_at_all_and_the_journal_goes_on(tmp_path: Path) -> None:
    batch = [accepted(2), accepted(3), accepted(4)]
    size_bytes = len(_written(tmp_path / "size", batch))
    for room_bytes in range(size_bytes):
        folder, failing = tmp_path / str(room_bytes), FailingDisk(nothing)
        journal = Journal.open(folder, failing.disk)
        journal.append([accepted(1)], NOW)
        failing.room_bytes, failing.crash = room_bytes, True
        with pytest.raises(Crash):
            journal.append(batch, NOW)
        successor = Journal.open(folder, Disk(fsync=nothing))
        assert numbers(list(successor.entries)) == [1], "one decision is one write"
        successor.append([accepted(9)], NOW)
        assert numbers(read(folder)) == [1, 9]


def _written(folder: Path, batch: list) -> bytes:
    journal = Journal.open(folder)
    journal.append([accepted(1)], NOW)
    before = (folder / "000001.jsonl").stat().st_size
    journal.append(batch, NOW)
    return (folder / "000001.jsonl").read_bytes()[before:]


@pytest.mark.parametrize("room_bytes", [0, 1, 100, 500])
def test_append_on_a_full_disk_confirms_nothing_until_there_is_room(tmp_path: Path, room_bytes: int) -> None:
    failing = FailingDisk()
    journal = Journal.open(tmp_path, failing.disk)
    journal.append([accepted(1)], NOW)
    failing.room_bytes = room_bytes
    for _ in range(20):
        with pytest.raises(Unavailable, match="No space left on device"):
            journal.append([accepted(2), accepted(3), accepted(4)], NOW)
    assert numbers(read(tmp_path))[0] == 1
    assert len(list(tmp_path.iterdir())) == 1, "a full disk is not filled with files"
    failing.room_bytes = None
    [entry] = journal.append([accepted(5)], NOW)
    assert entry.seq == 2
    assert numbers(read(tmp_path)) == [1, 5]
    assert numbers(list(Journal.open(tmp_path).entries)) == [1, 5]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_append_when_fsync_fails_confirms_nothing_and_later_goes_on(tmp_path: Path, number: int) -> None:
    failing = FailingDisk()
    journal = Journal.open(tmp_path, failing.disk)
    journal.append([accepted(1)], NOW)
    failing.fsync_errno = number
    for _ in range(3):
        with pytest.raises(Unavailable, match=os.strerror(number)):
            journal.append([accepted(2)], NOW)
    failing.fsync_errno = None
    assert [entry.seq for entry in journal.append([accepted(3)], NOW)] == [2]
    assert [entry.seq for entry in journal.append([accepted(4)], NOW)] == [3]
    assert numbers(read(tmp_path)) == [1, 3, 4], "the record that was not confirmed does not come back"
    assert journal.term == 1


def test_append_after_a_failed_fsync_gives_way_to_a_writer_that_read_the_unconfirmed_record(tmp_path: Path) -> None:
    failing = FailingDisk()
    journal = Journal.open(tmp_path, failing.disk)
    failing.fsync_errno = errno.EIO
    with pytest.raises(Unavailable):
        journal.append([accepted(1)], NOW)
    failing.fsync_errno = None
    successor = Journal.open(tmp_path)
    with pytest.raises(Fenced):
        journal.append([accepted(2)], NOW)
    successor.append([accepted(3)], NOW)
    assert numbers(read(tmp_path)) == [1, 3]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_open_where_nothing_can_be_created_is_unavailable(tmp_path: Path, number: int) -> None:
    def refuse(path: Path) -> int:
        raise OSError(number, os.strerror(number))

    Journal.open(tmp_path).append([accepted(1)], NOW)
    with pytest.raises(Unavailable, match=os.strerror(number)):
        Journal.open(tmp_path, Disk(create=refuse))
    assert numbers(read(tmp_path)) == [1]


def test_open_torn_in_its_header_at_every_byte_is_passed_over(tmp_path: Path) -> None:
    Journal.open(tmp_path, Disk(fsync=nothing)).append([accepted(1)], NOW)
    for room_bytes in range(150):
        failing = FailingDisk(nothing)
        failing.room_bytes, failing.crash = room_bytes, True
        with pytest.raises(Crash):
            Journal.open(tmp_path, failing.disk)
        assert numbers(read(tmp_path)) == [1]
    successor = Journal.open(tmp_path, Disk(fsync=nothing))
    assert numbers(list(successor.entries)) == [1]


def test_open_with_a_failing_fsync_is_unavailable_and_the_next_open_succeeds(tmp_path: Path) -> None:
    failing = FailingDisk()
    Journal.open(tmp_path).append([accepted(1)], NOW)
    failing.fsync_errno = errno.EIO
    with pytest.raises(Unavailable):
        Journal.open(tmp_path, failing.disk)
    assert numbers(list(Journal.open(tmp_path).entries)) == [1]


def test_power_lost_right_after_a_confirmation_keeps_the_record(tmp_path: Path) -> None:
    disk = ForgetfulDisk()
    for number in range(5):
        Journal.open(tmp_path, disk.disk).append([accepted(number)], NOW)
        disk.lose_power()
        assert numbers(read(tmp_path)) == list(range(number + 1))


def test_power_lost_after_taking_over_an_unsynced_record_keeps_what_was_taken_over(tmp_path: Path) -> None:
    power = ForgetfulDisk()

    def die(descriptor: int) -> None:
        raise Crash

    Journal.open(tmp_path / "journal", power.disk).append([accepted(1)], NOW)
    syncs = iter([power.disk.fsync] * 4)  # the parent folder, the older segment, the header, the folder; then death
    dying = Disk(create=power.disk.create, fsync=lambda descriptor: next(syncs, die)(descriptor))
    with pytest.raises(Crash):
        Journal.open(tmp_path / "journal", dying).append([accepted(2)], NOW)
    successor = Journal.open(tmp_path / "journal", power.disk)
    assert numbers(list(successor.entries)) == [1, 2]
    power.lose_power()
    assert numbers(read(tmp_path / "journal")) == [1, 2]


@pytest.mark.parametrize("seed", range(30))
def test_random_failures_crashes_and_takeovers_never_lose_or_reorder_a_confirmed_record(
    tmp_path: Path, seed: int
) -> None:
    dice, power = random.Random(seed), ForgetfulDisk()
    confirmed, tried = list[int](), 0
    failing, journal = _reopened(tmp_path, power)
    for _ in range(40):
        failing.room_bytes = failing.fsync_errno = None
        fault = dice.choice(["none", "none", "none", "full", "sync", "crash", "power", "takeover"])
        if fault == "full" or fault == "crash":
            failing.room_bytes, failing.crash = dice.randrange(700), fault == "crash"
        elif fault == "sync":
            failing.fsync_errno = errno.EIO
        elif fault == "power":
            power.lose_power()
            failing, journal = _reopened(tmp_path, power)
        elif fault == "takeover":
            older = journal
            failing, journal = _reopened(tmp_path, power)
            with pytest.raises(Fenced):
                older.append([accepted(10_000)], NOW)
        batch = list(range(tried, tried + dice.randint(1, 3)))
        tried = batch[-1] + 1
        try:
            journal.append([accepted(number) for number in batch], NOW)
            confirmed += batch
        except Unavailable:
            pass  # not confirmed: it may be there or not
        except Crash:
            failing, journal = _reopened(tmp_path, power)
        found = numbers(read(tmp_path))
        assert [number for number in found if number in set(confirmed)] == confirmed
        assert found == sorted(set(found)), "no record twice, none out of order"
        assert 10_000 not in found


def _reopened(folder: Path, power: ForgetfulDisk) -> tuple[FailingDisk, Journal]:
    failing = FailingDisk(power.disk.fsync)
    return failing, Journal.open(folder, Disk(power.disk.create, failing.disk.write, failing.disk.fsync))
