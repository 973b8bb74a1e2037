"""Private interfaces of Ray are imported in one file per program, which names the version that was read."""

import re
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

PRIVATE = re.compile(r"^\s*(from|import) ray[\w.]*\._(private|internal)\b|\bray\._private\b|ray\.core\.generated", re.M)
ALLOWED = {"ray_jobs/driver/ray_internals.py", "cluster/join.py"}
FOLDERS = ("steerway", "control_plane", "ray_jobs", "ui", "cluster", "benchmarks")


def users(root: Path) -> set[str]:
    """Return the source files that use a private interface of Ray."""
    paths = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return {str(path.relative_to(root)) for path in paths if PRIVATE.search(path.read_text())}


def test_private_interfaces_of_ray_are_in_one_place() -> None:
    assert users(ROOT) == ALLOWED


@pytest.mark.parametrize(
    "planted",
    ["from ray._private import state\n", "    x = ray._private.state\n", "from ray.train._internal import a\n"],
)
def test_a_planted_import_is_found(tmp_path: Path, planted: str) -> None:
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "page.py").write_text(planted)
    assert users(tmp_path) == {"ui/page.py"}
