"""Tree of the packages, read from their docstrings.

`python -m tests.architecture.tree` rewrites it in ARCHITECTURE.md.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("steerway", "control_plane", "ray_jobs", "ui", "cluster", "benchmarks")
DOCUMENT = ROOT / "ARCHITECTURE.md"
OPENS, CLOSES = "<!-- tree: made by `python -m tests.architecture.tree` -->\n```text\n", "```\n<!-- end of tree -->"
CAPTION_COLUMN = 18


def modules(root: Path = ROOT) -> list[Path]:
    """Return every module of the source packages, in the order of the tree: a folder's own files first."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py") if "__pycache__" not in path.parts]
    return sorted(paths, key=lambda path: _place(path.relative_to(root)))


def _place(path: Path) -> tuple[object, ...]:
    folders = path.parts[:-1]
    return (
        PACKAGES.index(folders[0]),
        *((1, folder) for folder in folders[1:]),
        (0, path.name != "__init__.py"),
        path.name,
    )


def caption(path: Path) -> str:
    """Return the first line of the module's docstring, without its full stop; empty if there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.strip().split("\n")[0].removesuffix(".")


def packages(root: Path = ROOT) -> dict[str, str]:
    """Return the caption of each package, by its path with a final `/`."""
    inits = [path for path in modules(root) if path.name == "__init__.py"]
    return {f"{path.relative_to(root).parent}/": caption(path) for path in inits}


def drawing(captions: dict[str, str]) -> str:
    """Draw the tree: one line per package, indented by its depth, with its caption in a column."""
    lines = []
    for path, text in captions.items():
        *parents, name = path.rstrip("/").split("/")
        lines.append(f"{'  ' * len(parents) + name + '/':<{CAPTION_COLUMN}}{text}".rstrip())
    return "\n".join(lines) + "\n"


def read_drawing(text: str) -> dict[str, str]:
    """Read a drawn tree; the inverse of `drawing`."""
    captions: dict[str, str] = {}
    folders: list[str] = []
    for line in text.splitlines():
        name, _, words = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        captions["".join(folders)] = words.strip()
    return captions


def drawn(document: str) -> str:
    """Return the tree that stands between its marks in the document."""
    return document.split(OPENS)[1].split(CLOSES)[0]


def rewrite(document: Path = DOCUMENT) -> None:
    """Replace the tree between the marks by the current one."""
    before, _, rest = document.read_text(encoding="utf-8").partition(OPENS)
    _, _, after = rest.partition(CLOSES)
    document.write_text(before + OPENS + drawing(packages()) + CLOSES + after, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
