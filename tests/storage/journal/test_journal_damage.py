"""Cut, flipped, zeroed and exchanged bytes: an exact prefix or `Damaged`, never a wrong record."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged
from control_plane.core.model.records import Entry
from control_plane.storage.journal.segments import SECTOR_BYTES, seal, unseal
from control_plane.storage.journal.writer import Disk, Journal, read
from tests.storage.facts import NOW, accepted, settled, started

FAST = Disk(fsync=lambda descriptor: None)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Two terms: records 1 to 3 in the first, 4 to 7 in the second (6 and 7 in one write)."""
    first = Journal.open(tmp_path / "journal", FAST)
    first.append([started(), accepted(1)], NOW)
    first.append([settled(1)], NOW)
    second = Journal.open(tmp_path / "journal", FAST)
    second.append([started(3)], NOW)
    second.append([started(4)], NOW)
    second.append([accepted(3), started(6)], NOW)
    return tmp_path / "journal"


def line_ends(data: bytes) -> list[int]:
    """Offsets just after each LF: `line_ends(data)[0]` is the header's end."""
    return [offset + 1 for offset, byte in enumerate(data) if byte == ord("\n")]


def records_in(lines: int) -> int:
    """How many records so many whole lines of the second segment make: 6 and 7 count together or not at all."""
    return 3 + {4: 2}.get(lines, max(lines - 1, 0))


def every_bit(data: bytes, start: int, stop: int) -> Iterator[bytes]:
    for offset in range(start, stop):
        for bit in range(8):
            yield data[:offset] + bytes([data[offset] ^ (1 << bit)]) + data[offset + 1 :]


def kept(path: Path, data: bytes) -> list[Entry] | Damaged:
    path.write_bytes(data)
    try:
        return read(path.parent)
    except Damaged as damage:
        return damage


def test_newest_segment_cut_at_every_byte_keeps_the_exact_prefix(journal: Path) -> None:
    path, whole = journal / "000002.jsonl", read(journal)
    data = path.read_bytes()
    ends = line_ends(data)
    for size_bytes in range(len(data) + 1):
        lines = sum(end <= size_bytes for end in ends)
        assert kept(path, data[:size_bytes]) == whole[: records_in(lines)], f"cut after {size_bytes} bytes"


def test_newest_segment_cut_at_every_byte_can_be_continued(journal: Path, tmp_path: Path) -> None:
    data = (journal / "000002.jsonl").read_bytes()
    whole, ends = read(journal), line_ends((journal / "000002.jsonl").read_bytes())
    for size_bytes in range(0, len(data) + 1, 7):
        copy = tmp_path / str(size_bytes)
        shutil.copytree(journal, copy)
        (copy / "000002.jsonl").write_bytes(data[:size_bytes])
        prefix = whole[: records_in(sum(end <= size_bytes for end in ends))]
        successor = Journal.open(copy, FAST)
        assert list(successor.entries) == prefix
        added = successor.append([accepted(9)], NOW)
        assert read(copy) == prefix + added
        assert (copy / "000002.jsonl").read_bytes() == data[:size_bytes], "a torn tail is evidence; it is not touched"


def test_older_segment_cut_at_every_byte_is_damaged(journal: Path) -> None:
    path = journal / "000001.jsonl"
    data = path.read_bytes()
    for size_bytes in range(len(data)):
        damage = kept(path, data[:size_bytes])
        assert isinstance(damage, Damaged)
        assert "000001.jsonl" in damage.reason


def test_every_bit_of_the_last_record_flipped_is_damaged(journal: Path) -> None:
    path = journal / "000002.jsonl"
    data = path.read_bytes()
    for flipped in every_bit(data, line_ends(data)[-2], len(data)):
        damage = kept(path, flipped)
        assert isinstance(damage, Damaged), "a confirmed record must not vanish for one bit"
        assert damage.detail == {"file": "000002.jsonl", "line": 5}


def test_every_bit_of_a_middle_record_flipped_is_damaged_by_line(journal: Path) -> None:
    path = journal / "000002.jsonl"
    data = path.read_bytes()
    ends = line_ends(data)
    for flipped in every_bit(data, ends[1], ends[2]):
        damage = kept(path, flipped)
        assert isinstance(damage, Damaged)
        assert damage.detail == {"file": "000002.jsonl", "line": 3}


@pytest.mark.parametrize("name", ["000001.jsonl", "000002.jsonl"])
def test_every_bit_of_a_header_flipped_is_damaged(journal: Path, name: str) -> None:
    data = (journal / name).read_bytes()
    for flipped in every_bit(data, 0, line_ends(data)[0]):
        damage = kept(journal / name, flipped)
        assert isinstance(damage, Damaged)
        assert damage.detail == {"file": name, "line": 1}


def test_every_bit_of_a_lonely_header_flipped_is_damaged(tmp_path: Path) -> None:
    Journal.open(tmp_path, FAST)
    path = tmp_path / "000001.jsonl"
    data = path.read_bytes()
    assert all(isinstance(kept(path, flipped), Damaged) for flipped in every_bit(data, 0, len(data)))


def test_tail_zeroed_from_every_byte_keeps_the_exact_prefix(journal: Path) -> None:
    path, whole = journal / "000002.jsonl", read(journal)
    data = path.read_bytes()
    ends = line_ends(data)
    for offset in range(ends[0], len(data)):
        zeroed = data[:offset] + bytes(len(data) - offset)
        lines = sum(end <= offset for end in ends)
        assert kept(path, zeroed) == whole[: records_in(lines)], f"zeroed from byte {offset}"


def test_every_sector_zeroed_is_damaged_unless_it_could_be_the_last_write(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, FAST)
    whole = [writer.append([accepted(number)], NOW)[0] for number in range(20)]
    path = tmp_path / "000001.jsonl"
    data = path.read_bytes()
    ends = line_ends(data)
    for start in range(0, len(data), SECTOR_BYTES):
        stop = min(start + SECTOR_BYTES, len(data))
        found = kept(path, data[:start] + bytes(stop - start) + data[stop:])
        if isinstance(found, Damaged):
            continue
        assert stop > ends[-2], "a whole line of a later write follows, so what was zeroed had been confirmed"
        assert found == whole[: sum(end <= start for end in ends) - 1]


def test_write_of_many_records_with_a_missing_sector_is_cut_off_whole(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, FAST)
    whole = writer.append([accepted(0)], NOW)
    path = tmp_path / "000001.jsonl"
    confirmed_bytes = path.stat().st_size
    whole += writer.append([accepted(number) for number in range(1, 12)], NOW)
    data = path.read_bytes()
    for sector in range(0, len(data), SECTOR_BYTES):
        start, stop = max(sector, confirmed_bytes), min(sector + SECTOR_BYTES, len(data))
        if start < stop:
            assert kept(path, data[:start] + bytes(stop - start) + data[stop:]) == whole[:1]


def test_two_records_exchanged_with_good_checksums_are_damaged(journal: Path) -> None:
    path = journal / "000002.jsonl"
    lines = path.read_bytes().splitlines()
    other = unseal(lines[2]) | {"time": "2030-01-01T00:00:00.000Z"}
    other.pop("crc", None)
    lines[2] = seal(other)
    damage = kept(path, b"\n".join(lines) + b"\n")
    assert isinstance(damage, Damaged)
    assert damage.detail == {"file": "000002.jsonl", "line": 4}
    assert "broken hash chain" in damage.reason


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_line_removed_is_damaged(journal: Path, gone: int) -> None:
    path = journal / "000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert isinstance(kept(path, b"".join(lines[:gone] + lines[gone + 1 :])), Damaged)


def test_a_line_repeated_is_damaged(journal: Path) -> None:
    path = journal / "000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert isinstance(kept(path, b"".join([*lines, lines[-1]])), Damaged)


def test_a_missing_older_segment_is_damaged_by_name(journal: Path) -> None:
    (journal / "000001.jsonl").unlink()
    with pytest.raises(Damaged, match=r"000001\.jsonl, which is missing"):
        read(journal)


def test_two_segments_exchanged_are_damaged(journal: Path) -> None:
    one, two = (journal / "000001.jsonl").read_bytes(), (journal / "000002.jsonl").read_bytes()
    (journal / "000001.jsonl").write_bytes(two)
    assert isinstance(kept(journal / "000002.jsonl", one), Damaged)


def test_open_of_a_damaged_journal_leaves_every_file_as_it_was(journal: Path) -> None:
    path = journal / "000001.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:400] + b"#" + data[401:])
    before = {file.name: file.read_bytes() for file in journal.iterdir()}
    with pytest.raises(Damaged, match="nothing was changed"):
        Journal.open(journal, FAST)
    assert {file.name: file.read_bytes() for file in journal.iterdir()} == before
