"""Store of a live source: what is taken in, once and durably, and what is refused and changes nothing."""

import errno
import hashlib
import io
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from control_plane.api.data_views import Ingested
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Conflict, Invalid, Unavailable
from control_plane.storage import failpoints
from control_plane.storage.data.bodies import Media
from control_plane.storage.data.index import Sender, SourceIndex
from control_plane.storage.data.store import SourceStore
from control_plane.storage.layout import RunFiles
from tests.storage.data.bodies import FRAMES, LINES, PICTURES, TABLE, WORDS, archive, frames, jsonl, npz, png

ALICE, BOB = Sender("alice", "operator"), Sender("bob", "admin")


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def store(root: Path, settings: SourceSettings = WORDS, source: str = "fresh") -> SourceStore:
    """The store of a source."""
    return SourceStore(RunFiles(root / "run-1"), source, settings)


def send(to: SourceStore, body: bytes, media: Media = "jsonl", sender: Sender = ALICE, **options: Any) -> Ingested:
    """Send a body as the gateway does."""
    with to.body() as path:
        path.write_bytes(body)
        return to.take_in(path, media, sender, **options)


def files_of(to: SourceStore) -> list[str]:
    """What lies in a source's folder, but for its index."""
    return sorted(path.name for path in to.folder.rglob("*") if path.is_file() and not path.name.startswith("index"))


def test_new_records_become_one_shard_named_by_its_hash_and_those_that_are_there_are_left_out(tmp_path: Path) -> None:
    words = store(tmp_path)
    first = send(words, jsonl([{"text": "a"}, {"text": "b", "stars": 3}, {"text": "a"}]))
    assert (first.records, first.duplicates) == (2, 1)
    assert first.shard is not None
    (name,) = files_of(words)
    content = (words.folder / name).read_bytes()
    assert name == f"{hashlib.sha256(content).hexdigest()}.jsonl"
    assert (first.shard.sha256, first.shard.records, first.shard.bytes) == (
        name.removesuffix(".jsonl"),
        2,
        len(content),
    )
    assert [json.loads(line) for line in content.splitlines()] == [{"text": "a"}, {"text": "b", "stars": 3}]
    again = send(words, b'[{"stars": 3, "text": "b"}, {"text": "c"}]', "json", BOB)
    assert (again.records, again.duplicates) == (1, 1), "whatever they are sent as"
    nothing = send(words, jsonl([{"text": "c"}]))
    assert (nothing.shard, nothing.records, nothing.duplicates) == (None, 0, 1)
    assert [(view.author, view.records, view.stage) for view in words.index.newest()] == [
        ("bob", 1, "waiting"),
        ("alice", 2, "waiting"),
    ]


def test_a_key_names_a_request_that_may_be_repeated_but_not_changed(tmp_path: Path) -> None:
    words, key = store(tmp_path), uuid4()
    first = send(words, jsonl([{"text": "a"}]), key=key)
    repeated = send(store(tmp_path), jsonl([{"text": "a"}]), key=key)
    assert repeated == first.model_copy(update={"repeated": True})
    with pytest.raises(Conflict, match="other records"):
        send(words, jsonl([{"text": "b"}]), key=key)
    assert len(files_of(words)) == 1


def test_shards_of_each_format_hold_what_was_sent(tmp_path: Path) -> None:
    lines = store(tmp_path, LINES, "lines")
    send(lines, b"one\r\n\nt\xc3\xa9l\xc3\xa9\n", "text")
    assert (lines.folder / files_of(lines)[0]).read_bytes() == "one\ntélé\n".encode()

    pictures = store(tmp_path, PICTURES, "pictures")
    send(pictures, archive({"../b": png(2), "/etc/a": png(1)}), "zip")
    with zipfile.ZipFile(pictures.folder / files_of(pictures)[0]) as shard:
        assert {entry.filename: shard.read(entry) for entry in shard.infolist()} == {"0.png": png(2), "1.png": png(1)}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in shard.infolist())

    moving = store(tmp_path, FRAMES, "frames")
    sent = frames(3)
    send(moving, npz(sent, compressed=True), "npz")
    with np.load(moving.folder / files_of(moving)[0]) as arrays:
        assert all(np.array_equal(arrays[name], sent[name]) for name in sent)
    same = [{"frame": sent["frame"][1].tolist(), "event": 1}, {"frame": [[0, 0, 0], [0, 0, 0.5]], "event": 7}]
    assert send(moving, jsonl(same)).duplicates == 1, "a record sent as JSON is the same record"

    import pyarrow.parquet

    table = store(tmp_path, TABLE, "table")
    send(table, jsonl([{"text": "a", "score": 1}, {"text": "b", "score": 0.5}]))
    rows = pyarrow.parquet.read_table(table.folder / files_of(table)[0]).to_pylist()
    assert rows == [{"text": "a", "score": 1.0}, {"text": "b", "score": 0.5}]
    assert send(table, (table.folder / files_of(table)[0]).read_bytes(), "parquet").duplicates == 2


def test_the_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    for settings, body, media in ((FRAMES, npz(frames(2)), "npz"), (PICTURES, archive({"a": png(1)}), "zip")):
        shards = [send(store(tmp_path / name, settings), body, media).shard for name in ("one", "two")]  # type: ignore[arg-type]
        assert shards[0] == shards[1]


NOT_FINITE = {"frame": np.full((1, 2, 3), np.nan, dtype=np.float32), "event": np.zeros(1, dtype=np.int64)}
BAD: dict[str, tuple[SourceSettings, Media, bytes, str]] = {
    "half a line": (WORDS, "jsonl", b'{"text": "a"}\n{"text": "b', "line 2: it is not valid JSON"),
    "a missing field": (WORDS, "jsonl", jsonl([{"stars": 1}]), "line 1: field 'text' is missing"),
    "null": (WORDS, "jsonl", jsonl([{"text": None}]), "line 1: field 'text' is null"),
    "another type": (WORDS, "jsonl", jsonl([{"text": "a", "stars": "5"}]), "line 1: field 'stars' is a text"),
    "a truth value for a number": (WORDS, "jsonl", jsonl([{"text": "a", "stars": True}]), "is true or false"),
    "an unknown field": (WORDS, "jsonl", jsonl([{"text": "a", "label": 1}]), "1 of its fields are not in the schema"),
    "no object": (WORDS, "jsonl", b"[1]\n", "line 1: it is not an object"),
    "NaN": (WORDS, "jsonl", b'{"text": NaN}\n', "line 1: it is not valid JSON: NaN"),
    "half a surrogate": (WORDS, "jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    "not UTF-8": (LINES, "text", b"\xff\n", "line 1: it is not UTF-8"),
    "a line break": (LINES, "jsonl", jsonl([{"text": "a\nb"}]), "line break"),
    "nothing": (WORDS, "jsonl", b"\n\n", "no records"),
    "no list": (WORDS, "json", b"{}", "must be a JSON array"),
    "another format": (WORDS, "npz", npz({}), "takes no npz"),
    "NaN frames": (FRAMES, "npz", npz(NOT_FINITE), "record 1: field 'frame' holds NaN"),
    "a shape": (FRAMES, "npz", npz(frames(2) | {"frame": np.zeros((2, 3, 3), np.float32)}), "has the shape [3, 3]"),
    "a dtype": (FRAMES, "npz", npz(frames(2) | {"frame": np.zeros((2, 2, 3))}), "is an array of float64"),
    "two lengths": (
        FRAMES,
        "npz",
        npz({"frame": frames(2)["frame"], "event": np.zeros(3, np.int64)}),
        "one first axis",
    ),
    "pickles": (
        FRAMES,
        "npz",
        npz({"frame": np.array([{"a": 1}], dtype=object), "event": np.zeros(1, np.int64)}, allow_pickle=True),
        "plain numbers",
    ),
    "another array": (FRAMES, "npz", npz(frames(1) | {"../x": np.zeros(1)}), "must be the schema's fields"),
    "ragged": (FRAMES, "jsonl", jsonl([{"frame": [[1], [2, 3]], "event": 1}]), "not a rectangular array"),
    "no archive": (FRAMES, "npz", b"PK\x03\x04 and no more", "no readable archive"),
    "a bomb": (PICTURES, "zip", b"", "unpacks to"),
    "no picture": (PICTURES, "zip", archive({"a.png": b"<svg/>"}), "image 1: it is no image of PNG or JPEG"),
    "a cut picture": (PICTURES, "zip", archive({"a.png": png(1, (64, 64))[:-40]}), "image 1: it is a broken image"),
    "a huge picture": (PICTURES, "zip", archive({"a.png": png(0, (9000, 9000))}), "9000 x 9000 pixels"),
    "no table": (TABLE, "parquet", b"PAR1", "no readable Parquet file"),
}


def bomb() -> bytes:
    """A small archive of 64 MiB of zeros."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(1 << 26))
    return body.getvalue()


@pytest.mark.parametrize("what", BAD)
def test_a_bad_body_is_refused_with_its_place_and_changes_nothing(tmp_path: Path, what: str) -> None:
    settings, media, body, reason = BAD[what]
    source = store(tmp_path, settings)
    with pytest.raises(Invalid) as refusal:
        send(source, bomb() if what == "a bomb" else body, media)
    assert reason in refusal.value.reason
    assert files_of(source) == []
    assert source.index.counts() == (0, 0, 0)


def test_the_good_records_of_a_batch_are_taken_in_if_the_sender_asks_for_them(tmp_path: Path) -> None:
    words = store(tmp_path)
    body = jsonl([{"text": "a"}, {"text": 1}]) + b"{\n" + jsonl([{"text": "b"}])
    with pytest.raises(Invalid, match=r"line 2: field 'text' is a whole number.*, and 1 more records") as refusal:
        send(words, body)
    assert [one["at"] for one in refusal.value.detail["refused"]] == ["line 2", "line 3"]  # type: ignore[attr-defined]
    answer = send(words, body, only_good=True)
    assert (answer.records, answer.refused_count, [one.at for one in answer.refused]) == (2, 2, ["line 2", "line 3"])


def test_reasons_never_repeat_what_was_sent(tmp_path: Path) -> None:
    secret = "sk-canary-17"
    for body in ({secret: 1}, {"text": secret, "stars": secret}, {"text": [secret]}):
        with pytest.raises(Invalid) as refusal:
            send(store(tmp_path), jsonl([body]))
        assert secret not in str(refusal.value.detail) + refusal.value.reason


@pytest.mark.parametrize(
    "moment", ["file.before_create", "file.before_write", "file.before_sync", "folder.before_sync"]
)
def test_a_full_disk_takes_nothing_in_and_the_same_request_succeeds_later(tmp_path: Path, moment: str) -> None:
    words, body, key = store(tmp_path), jsonl([{"text": "a"}]), uuid4()
    failpoints.arm(f"ingest.{moment}=error:{errno.errorcode[errno.ENOSPC]}")
    with pytest.raises(Unavailable, match="the disk is full; nothing was taken in"):
        send(words, body, key=key)
    failpoints.arm("")
    assert words.index.counts() == (0, 0, 0)
    assert send(words, body, key=key).records == 1
    assert len(files_of(words)) == 1


def send_in_a_child(root: Path, armed: str) -> int:
    """Send two records from a process of its own, and return how it ended."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            failpoints.arm(armed)
            send(store(root), jsonl([{"text": "a"}, {"text": "b"}]), key=UUID(int=7))
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("point", [point for point in failpoints.POINTS if point.startswith("ingest.")])
def test_a_killed_gateway_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    assert send_in_a_child(tmp_path, f"{point}=kill") == -signal.SIGKILL
    words = store(tmp_path)
    assert words.index.counts() == (0, 0, 0), "it was not told that they are taken in"
    assert send_in_a_child(tmp_path, "") == 0
    assert words.index.counts() == (2, 2, 1)
    assert len([name for name in files_of(words) if name.endswith(".jsonl")]) == 1


def test_an_announcement_is_made_once_and_holds_the_shards_of_one_sender(tmp_path: Path) -> None:
    words = store(tmp_path)
    shards = [send(words, jsonl([{"text": str(n)}]), sender=who).shard for n, who in enumerate((ALICE, ALICE, BOB))]
    index = SourceIndex(words.folder, "fresh")
    (first,) = index.next_announcements()
    assert first is not None
    assert (first.sender, first.shards) == (ALICE, tuple(shards[:2]))
    assert index.next_announcements() == [first], "until it is settled: the gateway may have been killed"
    index.settle(first.uuid, "live", 12, None)
    (second,) = index.next_announcements()
    assert second is not None
    assert second.shards == (shards[2],)
    index.settle(second.uuid, "refused", None, "no such source")
    assert index.next_announcements() == []
    assert [(one.stage, one.step, one.reason) for one in index.newest()] == [
        ("refused", None, "no such source"),
        ("live", 12, None),
        ("live", 12, None),
    ]
    assert index.counts() == (3, 0, 0)


def test_a_look_does_not_wait_for_a_request_that_writes_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = store(tmp_path)
    send(words, jsonl([{"text": "a"}]))
    monkeypatch.setattr("control_plane.storage.data.index.MAX_BUSY_S", 0.0)
    with words.index.transaction():
        looking = SourceIndex(words.folder, "fresh")
        assert looking.counts() == (1, 1, 1)
        assert len(looking.newest()) == 1
        with pytest.raises(Unavailable):
            looking.next_announcements()
