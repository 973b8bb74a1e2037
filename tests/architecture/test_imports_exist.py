"""Imports of our own modules: each names a module that exists. mypy does not look where it is told to ignore."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.tree import ROOT

OURS = ("steerway", "control_plane", "ray_jobs", "ui", "cluster", "benchmarks", "tests")


def imported(source: str) -> Iterator[str]:
    """Our own modules, and names in them, that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield node.module


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def missing(root: Path) -> list[str]:
    files = (path for package in OURS for path in sorted((root / package).rglob("*.py")))
    return [
        f"{path.relative_to(root)}: {name}" for path in files for name in imported(path.read_text()) if not exists(name)
    ]


def test_every_module_of_ours_that_is_imported_exists() -> None:
    assert missing(ROOT) == []


def test_planted_import_of_a_missing_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui/late.py").write_text("def later():\n    from control_plane.client.gone import Gone\n")
    assert missing(tmp_path) == ["ui/late.py: control_plane.client.gone"]
