"""Uploads on the disk: pieces, the hash at the end, two at once, room, age, and a process killed in the middle."""

import os
import time
from pathlib import Path

import pytest

from control_plane.core.model.errors import Conflict, Invalid, Overloaded, Unavailable
from control_plane.storage import failpoints
from control_plane.storage.code import uploads
from control_plane.storage.code.uploads import BundleUploads, Received, TooLarge, bundle_path
from tests.storage.code.bundles import killed_at, sha256_of, zip_of

DATA = zip_of(("train.py", b"print()" * 1000), ("data.csv", b"1,2\n" * 1000))
SHA256 = sha256_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BundleUploads:
    """Uploads with room for ten bundles of 20 KiB."""
    return BundleUploads(tmp_path, 20 * 1024)


def put(store: BundleUploads, data: bytes, offset: int, total: int, sha256: str = SHA256) -> int:
    """Write one piece."""
    piece = store.open_piece(sha256, offset, total)
    try:
        piece.write(data)
        return piece.settle()
    finally:
        piece.close()


def upload(store: BundleUploads, data: bytes) -> str:
    """Upload a bundle at once."""
    sha256 = sha256_of(data)
    put(store, data, 0, len(data), sha256)
    store.complete(sha256)
    return sha256


def test_pieces_become_a_bundle_when_the_hash_is_right(store: BundleUploads, tmp_path: Path) -> None:
    assert store.received(SHA256) == Received(0, complete=False)
    assert put(store, DATA[:5000], 0, len(DATA)) == 5000
    assert store.received(SHA256) == Received(5000, complete=False)
    put(store, DATA[5000:], 5000, len(DATA))
    assert not bundle_path(tmp_path, SHA256).exists()
    assert store.complete(SHA256) == store.received(SHA256) == Received(len(DATA), complete=True)
    assert bundle_path(tmp_path, SHA256).read_bytes() == DATA
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "bundles").iterdir()] == [0o600]
    assert (tmp_path / "bundles").stat().st_mode & 0o777 == 0o700


def test_a_wrong_hash_at_the_end_deletes_everything(store: BundleUploads, tmp_path: Path) -> None:
    put(store, DATA[:-1] + b"#", 0, len(DATA))
    with pytest.raises(Invalid, match=f"and not {SHA256[:16]}"):
        store.complete(SHA256)
    assert list((tmp_path / "bundles").iterdir()) == []
    assert store.received(SHA256) == Received(0, complete=False)


def test_a_bundle_that_is_refused_is_deleted(store: BundleUploads, tmp_path: Path) -> None:
    hostile = zip_of(("../evil.py", b"x"))
    with pytest.raises(Invalid, match="leaves its folder"):
        upload(store, hostile)
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_piece_must_continue_where_the_bundle_ends(store: BundleUploads) -> None:
    put(store, DATA[:100], 0, len(DATA))
    for offset in (0, 99, 101):
        with pytest.raises(Conflict, match="100 bytes of the bundle are here") as conflict:
            store.open_piece(SHA256, offset, len(DATA))
        assert conflict.value.detail == {"received_bytes": 100}


def test_too_large_a_bundle_is_refused_before_a_byte_is_stored(store: BundleUploads, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="the limit of this gateway is 20,480"):
        store.open_piece(SHA256, 0, 20 * 1024 + 1)
    assert not (tmp_path / "bundles").exists()


def test_of_two_uploads_of_one_hash_at_once_one_waits(store: BundleUploads) -> None:
    first = store.open_piece(SHA256, 0, len(DATA))
    first.write(DATA[:10])
    with pytest.raises(Conflict, match="another request is uploading the same bundle"):
        store.open_piece(SHA256, 10, len(DATA))
    first.close()
    put(store, DATA[10:], 10, len(DATA))
    assert store.complete(SHA256).complete


def test_bundles_are_removed_by_age_unless_they_are_asked_for(store: BundleUploads, tmp_path: Path) -> None:
    old = upload(store, zip_of(("old", b"1")))
    asked = upload(store, zip_of(("asked", b"2")))
    put(store, b"abc", 0, 10, "a" * 64)
    for path in (tmp_path / "bundles").iterdir():
        os.utime(path, (1, time.time() - uploads.UNUSED_FOR_S - 60))
    store.received(asked)
    upload(store, DATA)
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == sorted(f"{s}.zip" for s in (asked, SHA256))
    assert not store.received(old).complete


def test_the_longest_unused_bundles_make_room(tmp_path: Path) -> None:
    store = BundleUploads(tmp_path, 4000)  # room for 40,000
    names = [upload(store, zip_of((f"{number}", b"x" * 3700))) for number in range(10)]
    for number, name in enumerate(names):
        os.utime(bundle_path(tmp_path, name), (0, time.time() - 1000 + number))
    upload(store, zip_of(("more", b"x" * 3800)))
    here = [store.received(name).complete for name in names]
    assert here == [False] + [True] * 9


def test_unfinished_uploads_cannot_fill_the_disk(tmp_path: Path) -> None:
    store = BundleUploads(tmp_path, 1000)
    for number in range(10):
        put(store, b"x" * 999, 0, 1000, f"{number:064x}")
    with pytest.raises(Overloaded, match="unfinished uploads take all the space"):
        put(store, b"x" * 999, 0, 1000, "f" * 64)
    for path in (tmp_path / "bundles").iterdir():
        os.utime(path, (1, time.time() - uploads.UNFINISHED_FOR_S - 60))
    put(store, b"x" * 999, 0, 1000, "f" * 64)
    assert len(list((tmp_path / "bundles").iterdir())) == 1


def test_a_full_disk_is_said_and_what_is_there_stays(store: BundleUploads, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, DATA[:100], 0, len(DATA))
    failpoints.arm("bundle.piece.mid_write=error:ENOSPC")
    try:
        with pytest.raises(Unavailable, match="its disk is full"):
            put(store, DATA[100:200], 100, len(DATA))
    finally:
        failpoints.arm("")
    here = store.received(SHA256).size_bytes
    assert here == 150
    put(store, DATA[here:], here, len(DATA))
    assert store.complete(SHA256).complete


@pytest.mark.parametrize(
    "point", [point for point in failpoints.POINTS if point.startswith("bundle.") and "kept" not in point]
)
def test_killed_in_the_middle_of_an_upload(tmp_path: Path, point: str) -> None:
    def work() -> None:
        upload(BundleUploads(tmp_path, 20 * 1024), DATA)

    assert killed_at(point, work)
    store = BundleUploads(tmp_path, 20 * 1024)
    here = store.received(SHA256)
    assert here.complete == point.startswith(("bundle.name.before_sync", "bundle.name.after_sync"))
    if not here.complete:
        assert here.size_bytes == {"before_write": 0, "mid_write": len(DATA) // 2}.get(point.split(".")[-1], len(DATA))
        put(store, DATA[here.size_bytes :], here.size_bytes, len(DATA))
        store.complete(SHA256)
    assert bundle_path(tmp_path, SHA256).read_bytes() == DATA
