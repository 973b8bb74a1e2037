"""Limits on files, functions and folders, vague names, machine paths and leftover notes."""

import ast
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

from tests.architecture.tree import PACKAGES, ROOT, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_FOLDER_MODULES = 16  # besides __init__.py: what a reader takes in at a glance
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "stuff"}
LEFTOVERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.~}])/(?:home|root|work|Users|mnt|private)/[\w.-]+")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ".cfg", ".ini", "", ".Dockerfile"}


@cache
def tracked() -> tuple[Path, ...]:
    """Return every text file that belongs to the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(path for path in paths if path.suffix in TEXT and path.is_file())


def findings(pattern: re.Pattern[str]) -> list[str]:
    """Return the lines in which the pattern occurs."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def crowded_folders(root: Path) -> dict[str, int]:
    """Return the folders of source and tests with more modules than the limit, and their number of modules."""
    counts = Counter(
        str(path.parent.relative_to(root))
        for package in (*PACKAGES, "tests")
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"
    )
    return {folder: count for folder, count in counts.items() if count > MAX_FOLDER_MODULES}


def test_no_folder_holds_more_modules_than_its_limit() -> None:
    assert crowded_folders(ROOT) == {}


def test_planted_crowded_folders_are_found(tmp_path: Path) -> None:
    for folder, count in {"tests/core": 17, "ui/panels": 17, "ray_jobs/rank": 16}.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in ("__init__", *(f"module_{number}" for number in range(count))):
            (tmp_path / folder / f"{name}.py").touch()
    assert crowded_folders(tmp_path) == {"tests/core": 17, "ui/panels": 17}


def test_no_file_is_longer_than_its_limit() -> None:
    code = [*modules(), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_its_limit() -> None:
    long = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name} has {length}"] if length > MAX_FUNCTION_LINES else []
    assert long == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = [path for path in tracked() if path.suffix == ".py"]
    assert [str(path) for path in names if VAGUE_NAMES & set(re.split(r"[_/.]", str(path.relative_to(ROOT))))] == []


def test_no_file_names_a_path_of_some_machine() -> None:
    assert findings(MACHINE_PATHS) == []


def test_no_file_carries_a_leftover_note() -> None:
    assert findings(LEFTOVERS) == []


def test_the_checks_see_the_project() -> None:
    """Guard the tests above: a check that looks at nothing is always green."""
    assert len(tracked()) > 50
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(PACKAGES)
    assert MACHINE_PATHS.search("see /" + "home/ann/x")
    assert not MACHINE_PATHS.search("https://host/" + "home/ann")
