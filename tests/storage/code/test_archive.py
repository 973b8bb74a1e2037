"""A bundle is untrusted: every trick is refused with a sentence, before or while it is unpacked, and leaves nothing."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from control_plane.core.model.errors import Invalid
from control_plane.storage.code import archive
from tests.storage.code import bundles
from tests.storage.code.bundles import DIRECTORY, END, LOCAL, patched, zip_of

GOOD = zip_of(("train.py", b"print()"), ("data/part.csv", b"1,2\n"))
ZEROS = zip_of(("zeros", b"\0" * (16 << 20)), compression=zipfile.ZIP_DEFLATED)
DEFLATED = zip_of(("zeros", b"\0" * (1 << 20)), compression=zipfile.ZIP_DEFLATED)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "no zip": (b"#!/bin/sh\necho hello, this is no archive at all\n", "not a zip archive"),
    "empty": (b"", "not a zip archive"),
    "cut off": (GOOD[:-10], "cut off"),
    "something behind it": (GOOD + b"#", "behind its end"),
    "something before it": (b"#!/bin/sh\n" + GOOD, "not where"),
    "a comment": (zip_of(("a", b""), comment=b"hello"), "cut off, or has something"),
    "absolute": (zip_of(("/etc/passwd", b"x")), "absolute"),
    "up": (zip_of(("a/../../b.py", b"x")), "leaves its folder"),
    "up, at once": (zip_of(("..", b"x")), "leaves its folder"),
    "here": (zip_of(("./a.py", b"x")), "leaves its folder"),
    "empty part": (zip_of(("a//b.py", b"x")), "empty part"),
    "backslash": (zip_of(("a\\..\\b.py", b"x")), "backslash"),
    "drive": (zip_of(("C:/b.py", b"x")), "drive"),
    "NUL": (patched(zip_of(("aXb.py", b"x")), DIRECTORY, 47, "<B", 0), "two names"),
    "escape sequence": (zip_of(("\x1b[2Ja.py", b"x")), "control characters"),
    "direction mark": (zip_of(("a\u202eyp.py", b"x")), "control characters"),
    "long name": (zip_of(("a" * 256, b"x")), "too long a name"),
    "long path": (zip_of(("a/" * 600 + "b", b"x")), "too long a path"),
    "deep path": (zip_of(("a/" * 80 + "b", b"x")), "too long a path"),
    "hides Steerway": (zip_of(("ray_jobs/__init__.py", b"x")), "hide a module"),
    "hides Steerway, as a file": (zip_of(("control_plane.py", b"x")), "hide a module"),
    "runs in every process": (zip_of(("sitecustomize.py", b"x")), "hide a module"),
    "another case": (zip_of(("a.py", b"1"), ("A.py", b"2")), "would be one file"),
    "another case of a folder": (zip_of(("d/a", b"1"), ("D/b", b"2")), "would be one"),
    "another composition": (zip_of(("\u00e9.py", b"1"), ("e\u0301.py", b"2")), "would be one file"),
    "file as folder": (zip_of(("a", b"1"), ("a/b", b"2")), "a file and a folder"),
    "link": (bundles.link_to("/etc"), "symbolic link"),
    "device": (bundles.device(), "device"),
    "encrypted": (patched(GOOD, DIRECTORY, 8, "<H", 1), "encrypted"),
    "encrypted, in one header": (patched(GOOD, LOCAL, 6, "<H", 1), "two headers"),
    "unknown compression": (patched(GOOD, DIRECTORY, 10, "<H", 14), "compression"),
    "two sizes": (patched(GOOD, DIRECTORY, 24, "<L", 6), "two sizes"),
    "zip bomb": (ZEROS, "zip bomb"),
    "overlapping entries": (bundles.overlapping(), "overlaps"),
    "claims a terabyte": (patched(GOOD, END, 12, "<L", 2**31), "not where"),
    "claims many entries": (patched(patched(GOOD, END, 8, "<H", 65000), END, 10, "<H", 65000), "65,000 entries"),
    "an entry elsewhere": (patched(GOOD, DIRECTORY, 42, "<L", 3), "not where"),
    "in two parts": (patched(GOOD, END, 4, "<H", 1), "several parts"),
    "a folder with contents": (zip_of(("a/", b"x")), "a folder with contents"),
}

LYING: dict[str, tuple[bytes, str]] = {
    "larger than it says": (patched(DEFLATED, DIRECTORY, 24, "<L", 10), "cannot be unpacked"),
    "smaller than it says": (patched(DEFLATED, DIRECTORY, 24, "<L", (1 << 20) + 1), "cannot be unpacked|says"),
    "a flipped bit": (GOOD.replace(b"print()", b"prinT()"), "cannot be unpacked"),
    "another name in its own header": (GOOD.replace(b"train.py", b"other.py", 1), "cannot be unpacked"),
}
"""Only seen when every byte is inflated and counted."""


@pytest.mark.parametrize("name", [*HOSTILE, *LYING])
def test_hostile_archive_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    data, reason = (HOSTILE | LYING)[name]
    with pytest.raises(Invalid, match=reason):
        archive.unpack(BytesIO(data), tmp_path / "code")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_most_tricks_are_seen_before_anything_is_unpacked(name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(Invalid, match=reason):
        archive.check_archive(BytesIO(data))


def test_many_small_bombs_are_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 8 << 20)
    data = zip_of(*((f"z{number}", b"\0" * (1 << 20)) for number in range(9)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(Invalid, match="would unpack to 9,437,184 bytes"):
        archive.check_archive(BytesIO(data))


def test_good_archive_is_unpacked_with_private_modes(tmp_path: Path) -> None:
    def executable(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = 0o106777 << 16  # setuid, setgid, for everybody

    archive.unpack(BytesIO(bundles.with_entry(executable, "run.sh", b"#!/bin/sh\n")), tmp_path / "code")
    assert (tmp_path / "code" / "run.sh").stat().st_mode & 0o7777 == 0o700
    archive.unpack(BytesIO(GOOD), tmp_path / "other")
    assert (tmp_path / "other" / "data" / "part.csv").read_bytes() == b"1,2\n"
    assert (tmp_path / "other" / "train.py").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "other").stat().st_mode & 0o7777 == 0o700


def test_an_archive_inside_a_bundle_stays_an_archive(tmp_path: Path) -> None:
    archive.unpack(BytesIO(zip_of(("inner.zip", ZEROS))), tmp_path / "code")
    assert (tmp_path / "code" / "inner.zip").read_bytes() == ZEROS


def test_changed_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    archive.unpack(BytesIO(GOOD), folder)
    assert archive.changed_files(BytesIO(GOOD), folder) == []
    (folder / "result.txt").write_text("of the script")
    assert archive.changed_files(BytesIO(GOOD), folder) == []
    (folder / "train.py").write_text("evil()!")
    (folder / "data" / "part.csv").unlink()
    assert archive.changed_files(BytesIO(GOOD), folder) == ["train.py", "data/part.csv"]
