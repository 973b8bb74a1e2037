"""The audit names every damage, and where it is; a torn tail alone is none, and is healed."""

from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.records import Record
from control_plane.storage.journal.audit import Head, audit
from control_plane.storage.journal.segments import seal, unseal
from control_plane.storage.journal.writer import Journal, read
from tests.core.examples import accepted, created, recovered, repeated, settled, started
from tests.storage.journal.damages import (
    Files,
    Place,
    audited,
    copies,
    cuts,
    deletions,
    edited,
    files_of,
    files_with,
    flips,
    lines_of,
    swaps,
)
from tests.storage.scenario import FAST, NOW, write_scenario, write_small

OLD, NEW = "000001.jsonl", "000002.jsonl"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    write_small(tmp_path / "journal")
    return tmp_path / "journal"


@pytest.fixture
def files(journal: Path) -> Files:
    return files_of(journal)


def test_whole_journal_is_intact_and_has_a_head(journal: Path) -> None:
    found = audit(journal)
    assert (found.verdict, found.records, found.segments, found.run) == ("intact", 7, 2, "run-1")
    assert (found.head.seq, len(found.head.hash), found.findings, found.notes) == (7, 64, (), ())
    assert audit(journal, Head.parse(str(found.head))) == found


def test_journal_with_every_record_is_intact(tmp_path: Path) -> None:
    write_scenario(tmp_path / "journal")
    found = audit(tmp_path / "journal")
    assert (found.verdict, found.records) == ("intact", len(read(tmp_path / "journal")))


@pytest.mark.parametrize("version", ["v0.1", "v2"])
def test_journals_of_earlier_releases_are_intact(version: str) -> None:
    assert audit(Path(__file__).parents[1] / "journals" / version).verdict == "intact"


def test_newest_segment_cut_at_every_byte_has_a_torn_tail(journal: Path, files: Files) -> None:
    noted = audit(journal).head
    ends = [end + 1 for end, byte in enumerate(files[NEW]) if byte == ord("\n")]
    for size_bytes, cut in cuts(files, NEW):
        found = audited(journal, cut)
        whole = max(sum(end <= size_bytes for end in ends) - 1, 0)
        # The second and the third of its records were written together, and are honoured together.
        between_lines = size_bytes in ends and whole != 2
        assert found.verdict == ("intact" if between_lines else "torn tail"), size_bytes
        assert found.head.seq == 3 + (1 if whole == 2 else whole)
        if between_lines or size_bytes % 16 == 0:  # what was noted elsewhere tells what the files cannot
            (loss,) = audited(journal, cut, noted).findings
            assert (loss.what, loss.seq) == ("not as noted", found.head.seq + 1)


def test_torn_tail_is_healed_by_the_next_writer(journal: Path, files: Files) -> None:
    for size_bytes in range(3, len(files[NEW]), 97):
        audited(journal, {OLD: files[OLD], NEW: files[NEW][:size_bytes]})
        kept = read(journal)
        writer = Journal.open(journal, FAST)
        added = writer.append([created()] if not kept else [accepted(9)], NOW)
        writer.close()
        found = audit(journal)
        assert (found.verdict, found.records) == ("intact", len(kept) + len(added)), size_bytes


def test_older_segment_cut_at_every_byte_is_truncated_by_name(journal: Path, files: Files) -> None:
    for size_bytes, cut in cuts(files, OLD):
        found = audited(journal, cut)
        assert (found.verdict, [one.what for one in found.findings]) == ("damaged", ["truncated"]), size_bytes
        assert found.findings[0].file == OLD
        assert found.findings[0].offset == size_bytes
        assert found.head.seq == max(cut[OLD].count(b"\n") - 1, 0)


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_bit_of_every_byte_flipped_is_named_with_its_line(journal: Path, files: Files, name: str) -> None:
    for offset, flipped in flips(files, name):
        found = audited(journal, flipped)
        line = files[name][:offset].count(b"\n") + 1
        first = found.findings[0]
        assert (first.what, first.file, first.line) == ("changed bytes", name, line), offset
        assert found.head.seq == (0 if name == OLD else 3) + max(line - 2, 0)


def test_any_two_lines_exchanged_are_named_as_reordered(journal: Path, files: Files) -> None:
    for one, other, swapped in swaps(files):
        found = audited(journal, swapped)
        assert {finding.what for finding in found.findings} == {"reordered"}, (one, other)
        assert all(one <= (finding.file or "", finding.line or 0) <= other for finding in found.findings)


def test_any_line_taken_out_is_named_as_missing(journal: Path, files: Files) -> None:
    last, noted = list(lines_of(files))[-1], audit(journal).head
    for place, without in deletions(files):
        found = audited(journal, without)
        if place == last:  # a journal that was not written further looks the same
            assert (found.verdict, found.head.seq) == ("intact", 6)
            assert audited(journal, without, noted).findings[0].what == "not as noted"
            continue
        assert [one.what for one in found.findings] in (["missing lines"], ["truncated"]), place
        assert found.findings[0].file == place.file


def test_any_line_once_more_anywhere_is_named_as_duplicated(journal: Path, files: Files) -> None:
    for copied, behind, doubled in copies(files):
        found = audited(journal, doubled)
        if doubled[NEW] == files[NEW] and doubled[OLD].startswith(files[OLD]):
            # Behind what is honoured: there only a writer that was overtaken may have written, and no reader looks.
            assert (found.verdict, len(found.notes)) == ("intact", 1)
            assert ("copy" in found.notes[0]) == (copied.file == OLD)
            continue
        assert [one.what for one in found.findings] == ["duplicated"], (copied, behind)


def test_any_line_edited_with_a_good_checksum_is_named(journal: Path, files: Files) -> None:
    lines = lines_of(files)
    last, noted = list(lines)[-1], audit(journal).head
    for place, line in lines.items():
        changed = files_with(files, lines | {place: edited(line, time="2031")})
        found = audited(journal, changed)
        if place == last:  # no line behind it holds its hash
            assert found.verdict == "intact"
            assert [one.what for one in audited(journal, changed, noted).findings] == ["not as noted"]
            continue
        assert [(one.what, one.file, one.line) for one in found.findings] == [("edited", *place)]


def test_any_line_that_names_another_number_is_named(journal: Path, files: Files) -> None:
    lines = lines_of(files)
    for place, line in lines.items():
        if b'"seq":' in line and b'"type":"Segment"' not in line:
            changed = files_with(files, lines | {place: edited(line, seq=unseal(line[:-1])["seq"] + 2)})
            assert [(one.what, one.file, one.line) for one in audited(journal, changed).findings] == [
                ("edited", *place)
            ]


def test_several_damages_are_all_named(journal: Path, files: Files) -> None:
    lines = lines_of(files)
    middle = lines[Place(OLD, 3)]
    lines[Place(OLD, 3)] = middle[:50] + b"#" + middle[51:]
    lines[Place(NEW, 3)] = edited(lines[Place(NEW, 3)], time="2031")
    lines[Place(NEW, 5)] = lines[Place(NEW, 5)][:40] + b"##" + lines[Place(NEW, 5)][42:]
    found = audited(journal, files_with(files, lines))
    assert [(one.what, one.file, one.line) for one in found.findings] == [
        ("changed bytes", OLD, 3),
        ("edited", NEW, 3),
        ("changed bytes", NEW, 5),
    ]
    assert found.head.seq == 1


def test_lines_of_another_journal_are_foreign(journal: Path, files: Files, tmp_path: Path) -> None:
    write_scenario(tmp_path / "other")
    lines, others = lines_of(files), lines_of(files_of(tmp_path / "other"))
    stranger = others[Place(OLD, 4)]
    for place in list(lines)[:-1]:
        found = audited(journal, files_with(files, lines | {place: lines[place] + stranger}))
        if place == Place(OLD, 4):
            continue  # behind what is honoured
        assert [one.what for one in found.findings] == ["foreign line"], place


@pytest.mark.parametrize("text", [b"\n", b"hello\n", b"{}\n", b'"a"\n'])
def test_text_between_the_lines_is_foreign(journal: Path, files: Files, text: bytes) -> None:
    lines = lines_of(files)
    place = Place(NEW, 2)
    found = audited(journal, files_with(files, lines | {place: lines[place] + text}))
    assert [(one.what, one.line) for one in found.findings] == [("foreign line", 3)]


def test_zeroed_sector_is_told_from_other_changes(journal: Path, files: Files) -> None:
    zeroed = audited(journal, {OLD: files[OLD][:300] + bytes(60) + files[OLD][360:], NEW: files[NEW]})
    assert [(one.what, one.line, one.offset) for one in zeroed.findings] == [("changed bytes", 2, 300)]
    assert "a sector of the disk was lost" in zeroed.findings[0].said


def test_missing_segment_is_named(journal: Path, files: Files) -> None:
    found = audited(journal, {NEW: files[NEW]})
    assert [(one.what, one.file) for one in found.findings] == [("missing segment", OLD)]
    assert found.sentence().endswith("no record can be trusted")
    assert audited(journal, {}).findings[0].what == "missing segment"


def test_two_segments_exchanged_are_named(journal: Path, files: Files) -> None:
    found = audited(journal, {OLD: files[NEW], NEW: files[OLD]})
    assert {one.what for one in found.findings} == {"reordered"}


def rechained(files: Files, place: Place, line: bytes) -> Files:
    """The files with one line changed, and with every line behind it made to follow."""
    lines, prev = lines_of(files), None
    sizes = dict.fromkeys(files, 0)
    for at in lines:
        plain = unseal((line if at == place else lines[at])[:-1])
        if prev is not None:
            plain["prev"] = prev
        if plain["type"] == "Segment" and at.file == NEW:
            plain["after"]["size_bytes"] = sizes[OLD]
        lines[at] = seal(plain) + b"\n"
        sizes[at.file] += len(lines[at])
        prev = sha256(lines[at][:-1]).hexdigest()
    return files_with(files, lines)


def test_history_rewritten_to_its_end_is_found_by_the_noted_head_only(journal: Path, files: Files) -> None:
    noted = audit(journal).head
    line = lines_of(files)[Place(OLD, 3)]
    rewritten = rechained(files, Place(OLD, 3), edited(line, time="2031"))
    assert audited(journal, rewritten).verdict == "intact"
    (found,) = audited(journal, rewritten, noted).findings
    assert (found.what, found.seq) == ("not as noted", 1)
    assert audited(journal, rewritten, noted).head.seq == 0


@pytest.mark.parametrize("change", [{"command": "stop"}, {"arguments": {"save": True}}, {"status": "failed"}], ids=str)
def test_line_rewritten_beside_its_body_contradicts_it(journal: Path, files: Files, change: dict[str, object]) -> None:
    line = lines_of(files)[Place(NEW, 4)]
    found = audited(journal, rechained(files, Place(NEW, 4), edited(line, **change)))
    assert [(one.what, one.file, one.line, one.seq) for one in found.findings] == [("contradiction", NEW, 4, 6)]
    assert (found.verdict, found.head.seq) == ("damaged", 5)


IMPOSSIBLE: dict[str, tuple[list[Record], str]] = {
    "settled, never accepted": ([created(), settled(1)], "was never accepted"),
    "settled twice": ([created(), accepted(1), settled(1), settled(1)], "was already settled in record 3"),
    "accepted twice": ([created(), accepted(1), accepted(1)], "is accepted twice"),
    "repeated, never settled": ([created(), accepted(1), repeated(1)], "repeated before it was settled"),
    "no beginning": ([accepted(1)], "must begin with RunCreated"),
    "two beginnings": ([created(), created()], "created twice"),
    "a generation twice": ([created(), started(), started(901)], "generation 1 begins after generation 1"),
    "a recovery of nothing": ([created(), started(), recovered(3)], "without a failure"),
}


@pytest.mark.parametrize(("records", "said"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_history_that_cannot_be_is_damage(tmp_path: Path, records: list[Record], said: str) -> None:
    Journal.open(tmp_path, FAST).append(records, NOW)
    found = audit(tmp_path)
    assert [one.what for one in found.findings] == ["contradiction"]
    assert said in found.findings[0].said
    assert found.head.seq == len(records) - 1


def test_void_segment_and_strange_file_are_noted_and_no_damage(journal: Path, files: Files) -> None:
    (journal / "000003.jsonl").write_bytes(b"")
    (journal / "notes.txt").write_text("x")
    Journal.open(journal, FAST).append([accepted(3)], NOW)
    found = audit(journal)
    assert (found.verdict, found.records) == ("intact", 8)
    assert [note.split(" ")[0] for note in found.notes] == ["000003.jsonl", "'notes.txt'"]


def test_record_of_a_later_release_is_named_as_unknown(tmp_path: Path) -> None:
    Journal.open(tmp_path, FAST).append([created()], NOW)
    path = tmp_path / OLD
    header, line = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + edited(line, type="Novelty"))
    assert [one.what for one in audit(tmp_path).findings] == ["unknown record"]
    path.write_bytes(edited(header, version=99))
    assert [one.what for one in audit(tmp_path).findings] == ["unknown record"]


def test_settled_line_of_the_first_version_is_read_with_what_was_asked() -> None:
    lines = [entry.line() for entry in read(Path(__file__).parents[1] / "journals" / "v0.1")]
    (settled_stop,) = [each for each in lines if each.get("uuid") == str(UUID(int=9)) and each["status"] == "applied"]
    assert (settled_stop["command"], settled_stop["arguments"]) == ("stop", {"save": True})


def test_audit_without_a_journal_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no journal"):
        audit(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "7", "7:", "7:abc", "x:" + "0" * 64, "7:" + "g" * 64, "-1:" + "0" * 64])
def test_head_that_is_none_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(Invalid, match="SEQ:HASH"):
        Head.parse(text)
