"""The tree of the house, read off the docstrings.

`python -m tests.architecture.tree` rewrites it in ARCHITECTURE.md.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("steerway", "control_plane", "ray_jobs", "ui", "cluster", "benchmarks")
DOCUMENT = ROOT / "ARCHITECTURE.md"
OPENS, CLOSES = "<!-- tree: made by `python -m tests.architecture.tree` -->\n```text\n", "```\n<!-- end of tree -->"
CAPTION_COLUMN = 34


def modules(root: Path = ROOT) -> list[Path]:
    """Every module of the house, in the order of the tree: a folder's own files first."""
    found = [path for package in PACKAGES for path in (root / package).rglob("*.py") if "__pycache__" not in path.parts]
    return sorted(found, key=lambda path: _place(path.relative_to(root)))


def _place(path: Path) -> tuple[object, ...]:
    folders = path.parts[:-1]
    return (
        PACKAGES.index(folders[0]),
        *((1, folder) for folder in folders[1:]),
        (0, path.name != "__init__.py"),
        path.name,
    )


def caption(path: Path) -> str:
    """The first line of the module's docstring, without its final stop; empty if there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.strip().split("\n")[0].removesuffix(".")


def entries(root: Path = ROOT) -> dict[str, str]:
    """Path (a folder's ends with `/`) -> caption. A folder's caption is that of its `__init__.py`."""
    found = {}
    for path in modules(root):
        relative = path.relative_to(root)
        is_folder = path.name == "__init__.py"
        found[f"{relative.parent}/" if is_folder else str(relative)] = caption(path)
    return found


def drawing(captions: dict[str, str]) -> str:
    """The tree as text: one line an entry, indented by its depth, with its caption in a column."""
    lines = []
    for path, words in captions.items():
        depth = path.rstrip("/").count("/")
        name = "  " * depth + path.rstrip("/").split("/")[-1] + ("/" if path.endswith("/") else "")
        lines.append(f"{name:<{CAPTION_COLUMN}}{words}".rstrip())
    return "\n".join(lines) + "\n"


def read_drawing(text: str) -> dict[str, str]:
    """The inverse of `drawing`."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in text.splitlines():
        name, _, words = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        found["/".join([*folders, name])] = words.strip()
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
    return found


def drawn(document: str) -> str:
    """The tree between its marks in the document."""
    return document.split(OPENS)[1].split(CLOSES)[0]


def rewrite(document: Path = DOCUMENT) -> None:
    """Put the tree of today between the marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(OPENS)
    _, _, after = rest.partition(CLOSES)
    document.write_text(before + OPENS + drawing(entries()) + CLOSES + after, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
