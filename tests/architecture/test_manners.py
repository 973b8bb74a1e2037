"""Sizes, names, and words that do not belong into a house that is finished."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

from tests.architecture.tree import PACKAGES, ROOT, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "stuff"}
LEFTOVERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.~}])/(?:home|root|work|Users|mnt|private)/[\w.-]+")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ".cfg", ".ini", "", ".Dockerfile"}


@cache
def tracked() -> tuple[Path, ...]:
    """Every text file that belongs to the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(path for path in paths if path.suffix in TEXT and path.is_file())


def findings(pattern: re.Pattern[str]) -> list[str]:
    """Where the pattern occurs."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


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


def test_the_checks_see_the_house() -> None:
    """Guards the tests above: a check that looks at nothing is always green."""
    assert len(tracked()) > 50
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(PACKAGES)
    assert MACHINE_PATHS.search("see /" + "home/ann/x")
    assert not MACHINE_PATHS.search("https://host/" + "home/ann")
