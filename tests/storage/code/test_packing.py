"""Packing: the bundle is a function of the files' contents; what is ignored, linked or too large, and what is said."""

import os
import shutil
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from control_plane.core.model.errors import Invalid
from control_plane.storage.code import packing
from control_plane.storage.code.archive import check_archive
from control_plane.storage.code.packing import Contents, packed
from tests.storage.code.bundles import bytes_of, folder_of, names_in


def test_equal_content_has_an_equal_hash_wherever_and_whenever_it_is_packed(tmp_path: Path) -> None:
    files = {"train.py": "print()", "sub/data.csv": "1,2", "sub/a.py": ""}
    first = folder_of(tmp_path / "first", files)
    second = folder_of(tmp_path / "second", dict(reversed(files.items())))
    for number, path in enumerate(sorted(second.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o777 if path.is_dir() else 0o664)
    assert bytes_of(first) == bytes_of(second)
    (second / "train.py").chmod(0o755)
    assert bytes_of(first) != bytes_of(second)
    (second / "train.py").chmod(0o644)
    (second / "sub" / "a.py").write_text("#")
    assert bytes_of(first) != bytes_of(second)


def test_a_packed_bundle_is_acceptable(tmp_path: Path) -> None:
    data = bytes_of(folder_of(tmp_path, {"train.py": "print()", "with blank/\u00e9.txt": "x" * 70_000}))
    assert [entry.filename for entry in check_archive(BytesIO(data))] == ["train.py", "with blank/\u00e9.txt"]
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {packing.DATE}


IGNORED = {
    ".gitignore": "*.csv\n!keep.csv\n/build/\nlogs/\n# comment\n*.tmp\n!sub/deep.tmp\n",
    "train.py": "",
    "a.csv": "",
    "keep.csv": "",
    "build/x.py": "",
    "sub/build/y.py": "",
    "sub/logs/z.txt": "",
    "sub/.gitignore": "!b.csv\nsecret.py\n",
    "sub/b.csv": "",
    "sub/c.csv": "",
    "sub/secret.py": "",
    "sub/deep.tmp": "",
    "logs": "a file, no folder",
}


def test_gitignore_counts_at_every_level_as_it_does_for_git(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "repository", IGNORED)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert sorted(names_in(bytes_of(folder))) == sorted(listed.stdout.split())
    # The folder of the script lies deeper in the repository: the outer file counts, too.
    listed = subprocess.run(
        ["git", "-C", str(folder / "sub"), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True
    )
    assert sorted(names_in(bytes_of(folder / "sub"))) == sorted(listed.stdout.split())


def test_rayignore_leaves_out_more_and_takes_nothing_back(tmp_path: Path) -> None:
    files = {".gitignore": "a.csv\n", ".rayignore": "*.bin\n!a.csv\n", "sub/.rayignore": "b.py\n"}
    folder = folder_of(tmp_path, files | {"a.csv": "", "x.bin": "", "sub/b.py": "", "b.py": ""})
    assert names_in(bytes_of(folder)) == [".gitignore", ".rayignore", "b.py", "sub/.rayignore"]


def test_history_caches_and_virtual_environments_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "train.py": "",
            ".git/config": "",
            "sub/.git": "gitdir: elsewhere",
            "sub/__pycache__/a.pyc": "",
            "env/pyvenv.cfg": "",
            "env/lib/x.py": "",
            "conda/conda-meta/history": "",
            ".steerway/tokens/admin": "",
            "venv/not_an_environment.py": "",
        },
    )
    assert names_in(bytes_of(folder)) == ["train.py", "venv/not_an_environment.py"]


def test_links_inside_are_followed_and_links_outside_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "code", {"train.py": "", "data/a.csv": "1,2"})
    (folder / "latest.csv").symlink_to("data/a.csv")
    (folder / "more").symlink_to(folder / "data")
    assert names_in(bytes_of(folder)) == ["data/a.csv", "latest.csv", "more/a.csv", "train.py"]
    (folder / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="passwords is a symbolic link to /etc/passwd, outside"):
        bytes_of(folder)
    (folder / ".rayignore").write_text("passwords\n")
    assert "passwords" not in names_in(bytes_of(folder))
    (folder / "data" / "loop").symlink_to("..")
    with pytest.raises(Invalid, match="loop is a symbolic link to a folder that it lies in"):
        bytes_of(folder)
    (folder / "data" / "loop").unlink()
    (folder / "dangling").symlink_to("nowhere")
    with pytest.raises(Invalid, match="dangling is a symbolic link to nothing"):
        bytes_of(folder)


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"train.py": ""})
    os.mkfifo(folder / "pipe")
    with pytest.raises(Invalid, match="pipe is a pipe, a socket or a device"):
        bytes_of(folder)


def test_too_large_a_folder_names_its_largest_files_and_folders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"train.py": "print()", "data/a.csv": "1" * 3_000_000, "weights.bin": "0" * 2_000_000})
    message = r"5 MiB|4\.8 MiB, and the limit is 1\.0 MiB\. Largest: data/ \(2\.9 MiB\), data/a\.csv \(2\.9 MiB\)"
    with pytest.raises(Invalid, match=message) as refusal, packed(folder, max_bytes=1 << 20):
        pass
    assert ".rayignore" in refusal.value.reason
    assert "--no-bundle" in refusal.value.reason
    with packed(folder, max_bytes=8 << 20) as bundle:
        assert bundle.files == 3
        place = bundle.path.parent
    assert not place.exists()


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_ENTRIES", 3)
    folder = folder_of(tmp_path, {f"{number}.txt": "" for number in range(4)})
    with pytest.raises(Invalid, match="more than 3 files"):
        bytes_of(folder)


def test_the_home_folder_itself_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder_of(tmp_path, {"train.py": ""})))
    with pytest.raises(Invalid, match="move it into a folder of its own"):
        bytes_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ray_jobs/a.py", "would hide a module of Steerway's"),
        ("steerway.py", "would hide a module of Steerway's"),
        ("a\\b.py", "backslash"),
        ("line\nbreak.py", "control characters"),
    ],
)
def test_names_that_a_gateway_refuses_are_refused_before_they_are_sent(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        bytes_of(folder_of(tmp_path, {name: ""}))


def test_two_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"Data.csv": "1", "data.csv": "2"})
    with pytest.raises(Invalid, match="would be the same file as 'Data\\.csv'"):
        bytes_of(folder)


def test_modules_with_the_names_of_our_own_other_packages_travel(tmp_path: Path) -> None:
    files = {"ui/__init__.py": "", "cluster.py": "", "benchmarks/a.py": "", "train.py": ""}
    assert names_in(bytes_of(folder_of(tmp_path, files))) == sorted(files)


def test_extras_are_packed_under_their_names_whatever_the_folder_ignores(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "code", {"train.py": "", ".gitignore": "data/\n", "data/part.txt": "1"})
    library = folder_of(tmp_path / "library", {"mine/__init__.py": "", "mine/__pycache__/x.pyc": "", "mine/data/x": ""})
    extras = {"data": folder / "data", "_modules/mine": library / "mine", "one.txt": folder / "data" / "part.txt"}
    expected = [
        ".gitignore",
        "_modules/mine/__init__.py",
        "_modules/mine/data/x",
        "data/part.txt",
        "one.txt",
        "train.py",
    ]
    assert names_in(bytes_of(folder, Contents(extras))) == expected
    other = folder_of(tmp_path / "other", {"train.py": "#"})
    with pytest.raises(Invalid, match=r"would both be train\.py in the code bundle"):
        bytes_of(folder, Contents({"train.py": other / "train.py"}))
    shutil.rmtree(library)
    with pytest.raises(Invalid, match="mine cannot be read"):
        bytes_of(folder, Contents(extras))
