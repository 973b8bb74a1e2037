"""The tests of the journal are tested: with any one of its guards taken out, one of these stories ends badly."""

import errno
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from control_plane.core.model.errors import Damaged, Fenced, Unavailable
from control_plane.storage.journal import segments as real_segments
from control_plane.storage.journal import writer as real_journal
from tests.storage.disks import FailingDisk, ForgetfulDisk
from tests.storage.facts import NOW, accepted, numbers, started

Story = Callable[[ModuleType, ModuleType, Path], None]
"""Plays with a journal module, its segments module and a folder; raises if what must hold does not."""


def older_writer_confirms_nothing(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    older = journal.Journal.open(folder)
    journal.Journal.open(folder)
    with pytest.raises(Fenced):
        older.append([accepted(1)], NOW)


def write_on_its_way_during_a_takeover_is_not_confirmed(
    journal: ModuleType, segments: ModuleType, folder: Path
) -> None:
    takeovers = []

    def take_over_and_write(descriptor: int, data: bytes) -> int:
        if b'"accepted"' in data:
            takeovers.append(journal.Journal.open(folder))
        return journal.Disk().write(descriptor, data)

    older = journal.Journal.open(folder, journal.Disk(write=take_over_and_write))
    with pytest.raises(Fenced):
        older.append([accepted(1)], NOW)
    assert len(takeovers) == 1


def late_bytes_are_not_seen(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    older = journal.Journal.open(folder)
    older.append([accepted(1)], NOW)
    newer = journal.Journal.open(folder)
    with pytest.raises(Fenced):
        older.append([accepted(2)], NOW)
    newer.append([accepted(3)], NOW)
    assert numbers(journal.read(folder)) == [1, 3]


def confirmed_before_a_takeover_is_kept(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    older = journal.Journal.open(folder)
    disk = ForgetfulDisk().disk

    def create_after_the_older_wrote(path: Path) -> int:
        older.append([accepted(1)], NOW)
        return disk.create(path)

    journal.Journal.open(folder, journal.Disk(create=create_after_the_older_wrote))
    assert numbers(journal.read(folder)) == [1]


def confirmed_survives_a_loss_of_power(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    power = ForgetfulDisk()
    disk = journal.Disk(create=power.disk.create, fsync=power.disk.fsync)
    journal.Journal.open(folder, disk).append([accepted(1)], NOW)
    power.lose_power()
    assert numbers(journal.read(folder)) == [1]


def unconfirmed_is_not_built_upon(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    failing = FailingDisk()
    writer = journal.Journal.open(folder, journal.Disk(write=failing.disk.write, fsync=failing.disk.fsync))
    failing.room_bytes = 100
    with pytest.raises(Unavailable):
        writer.append([accepted(1)], NOW)
    failing.room_bytes, failing.fsync_errno = None, errno.EIO
    with pytest.raises(Unavailable):
        writer.append([accepted(2)], NOW)
    failing.fsync_errno = None
    writer.append([accepted(3)], NOW)
    assert numbers(journal.read(folder)) == [3]


def changed_records_are_damage(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    writer = journal.Journal.open(folder)
    for number in range(3):
        writer.append([started(number)], NOW)
    path = folder / "000001.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    forged = segments.unseal(lines[2][:-1]) | {"time": "2030"}
    forged.pop("crc", None)
    last = data.rindex(b'"recovered":2') + len(b'"recovered":')
    for changed in (
        b"".join([*lines[:2], segments.seal(forged) + b"\n", lines[3]]),
        data[:last] + b"3" + data[last + 1 :],
        data[:-1] + b"\x0b",
    ):
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            journal.read(folder)


def zeroed_sectors_under_confirmed_records_are_damage(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    writer = journal.Journal.open(folder)
    for number in range(12):
        writer.append([started(number)], NOW)
    path = folder / "000001.jsonl"
    data = path.read_bytes()
    for sector in (0, 512, 1024):
        path.write_bytes(data[:sector] + bytes(512) + data[sector + 512 :])
        with pytest.raises(Damaged):
            journal.read(folder)


def torn_write_is_cut_off(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    writer = journal.Journal.open(folder)
    writer.append([accepted(1)], NOW)
    path = folder / "000001.jsonl"
    confirmed = path.read_bytes()
    for torn in (b'{"seq":2,', bytes(700), b'{"seq":2' + bytes(1200) + b'"}\n'):
        path.write_bytes(confirmed + torn)
        assert numbers(journal.read(folder)) == [1]


def segment_whose_header_never_arrived_is_void(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    journal.Journal.open(folder).append([accepted(1)], NOW)
    for number, torn in enumerate((b"", b'{"type":"Seg', bytes(180)), start=2):
        (folder / f"00000{number}.jsonl").write_bytes(torn)
    assert numbers(journal.read(folder)) == [1]


def half_of_a_write_is_none(journal: ModuleType, segments: ModuleType, folder: Path) -> None:
    writer = journal.Journal.open(folder)
    writer.append([accepted(1)], NOW)
    writer.append([accepted(2), accepted(3)], NOW)
    path = folder / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert numbers(journal.read(folder)) == [1, 2, 3]
    path.write_bytes(b"".join(lines[:-1]))
    assert numbers(journal.read(folder)) == [1]
    journal.Journal.open(folder).append([accepted(4)], NOW)
    assert numbers(journal.read(folder)) == [1, 4]


STORIES: tuple[Story, ...] = (
    older_writer_confirms_nothing,
    write_on_its_way_during_a_takeover_is_not_confirmed,
    late_bytes_are_not_seen,
    confirmed_before_a_takeover_is_kept,
    confirmed_survives_a_loss_of_power,
    unconfirmed_is_not_built_upon,
    changed_records_are_damage,
    zeroed_sectors_under_confirmed_records_are_damage,
    torn_write_is_cut_off,
    segment_whose_header_never_arrived_is_void,
    half_of_a_write_is_none,
)

PERSIST = 'self._disk.persist(self._descriptor, data, "journal.append")\n            '
SYNC_HEADER = 'self._disk.persist(descriptor, raw + b"\\n", "journal.header")\n            '
RECOVER = "if self._descriptor is None:\n                self._recover(number)"
CREATE = "descriptor = self._disk.create(path)"

MUTANTS: dict[str, list[tuple[str, str]]] = {
    "no fence": [(PERSIST + "self._check_fence()", PERSIST.strip())],
    "fence before the write": [
        (PERSIST + "self._check_fence()", "self._check_fence()\n            " + PERSIST.strip())
    ],
    "no pin": [("read_regular(path)[: pin.size_bytes]", "read_regular(path)")],
    "no chain": [('if line.get("prev") != end.digest:', "if False:")],
    "no checksum": [("if raw != text[:-1]", "if False and raw != text[:-1]")],
    "no fsync": [("        self.fsync(descriptor)\n", "")],
    "no fsync of the folder": [
        (SYNC_HEADER + 'self._disk.sync(self._directory, "journal.segment")', SYNC_HEADER.strip())
    ],
    "read before the segment is taken": [
        (RECOVER, "pass"),
        (CREATE, "if self._descriptor is None:\n            self._recover(number)\n        " + CREATE),
    ],
    "writes on after a failure": [("if self._unsettled:", "if False:")],
    "a failed write counts": [("self._unsettled = True\n", "self._end = end\n")],
    "any bad end is torn": [("(zeros or tail.endswith", "(True or tail.endswith")],
    "a changed line end is torn": [('tail.endswith(b"\\0") or not _is_sealed(tail[:-1])', "True")],
    "zeros before a later write are torn": [("max(later, default=0) <= seq + 1", "True")],
    "half of a write counts": [("if _ends_its_write(line, end.seq):", "if True:")],
    "a write does not say where it ends": [('{"until": end.seq + len(records)}', "{}")],
    "nothing is torn": [("if may_be_torn and _torn(", "if False and _torn(")],
    "zeros are not torn": [("(zeros or tail.endswith", "(False and tail.endswith")],
    "any unreadable header is void": [
        ("len(self.data) <= MAX_HEADER_BYTES and _torn(self.data, 0, 0)", "_torn(self.data, 0, 0)")
    ],
    "no header is void": [("return len(self.data) <= MAX_HEADER_BYTES and", "return False and")],
}

serial = itertools.count(1)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[str, str]]], tuple[ModuleType, ModuleType]]:
    """Makes a journal and its segments from their own sources with some text replaced."""

    def build(changes: list[tuple[str, str]]) -> tuple[ModuleType, ModuleType]:
        sources = [Path(str(module.__file__)).read_text() for module in (real_segments, real_journal)]
        for old, new in changes:
            assert sum(source.count(old) for source in sources) == 1, f"{old!r} stands there once"
            sources = [source.replace(old, new) for source in sources]
        names = [f"mutant_{next(serial)}_{kind}" for kind in ("segments", "journal")]
        modules = [ModuleType(name) for name in names]
        sources[1] = sources[1].replace("control_plane.storage.journal.segments", names[0])
        for module, source in zip(modules, sources, strict=True):
            monkeypatch.setitem(sys.modules, module.__name__, module)
            exec(compile(source, module.__name__, "exec"), module.__dict__)
        return modules[1], modules[0]

    return build


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A new empty folder for each story."""
    return (tmp_path / str(number) for number in itertools.count())


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_story_with_the_journal_as_it_is_ends_well(story: Story, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    story(real_journal, real_segments, tmp_path / "journal")


@pytest.mark.parametrize("fault", MUTANTS)
def test_story_with_a_planted_fault_ends_badly(
    fault: str, build: Callable[..., tuple[ModuleType, ModuleType]], folders: Iterator[Path]
) -> None:
    journal, segments = build(MUTANTS[fault])
    noticed = [story.__name__ for story in STORIES if _fails(story, journal, segments, next(folders))]
    assert noticed, f"a journal with the fault '{fault}' passes every story"


def _fails(story: Story, journal: ModuleType, segments: ModuleType, folder: Path) -> bool:
    folder.mkdir()
    try:
        story(journal, segments, folder)
    except (Exception, pytest.fail.Exception):
        return True
    return False
